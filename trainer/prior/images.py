"""Class images: what the untouched model draws for "a photo of a dog", so that training can hold on to it (arXiv
2208.12242).

Picture i is always drawn from seed base + i and in the same company, so topping a folder up, or going on after a kill,
gives the pictures of making all at once. A manifest beside them says how they were made (`manifest`); a folder is only
added to when that is how they would be made now. Pictures that are not in the manifest are the user's own: they are used
whole, none is drawn among them, and nothing is ever overwritten.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from trainer.data.account import by_kind, counted, of_left
from trainer.data.folders import find
from trainer.data.photos import PhotoSet, candidates, class_prompt, scan_class
from trainer.data.words import listed
from trainer.draw.painter import Painter
from trainer.draw.preview import slug
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import Notice, Stage
from trainer.files.claim import Claim
from trainer.files.store import key
from trainer.files.whole import whole
from trainer.machine.phase import Phase
from trainer.machine.team import ALONE, Team
from trainer.models.base import Parts
from trainer.prior.manifest import Manifest, digest, digest_of, opened, settings, theirs
from trainer.prior.turn import come
from trainer.settings.config import Config

CHUNK = 16  # pictures between two moves of the denoiser off the card: little is lost when somebody interrupts


def folder_for(parts: Parts, config: Config, cache: Path) -> Path:
    """Where class images are drawn: --class_data_dir, or a folder in the cache named by the class prompt and by how its
    pictures are made; the latter, too, where somebody keeps pictures of their own, among which nothing is drawn."""
    named = config.prior.class_data_dir
    if named and not theirs(Path(named)):
        return Path(named)
    made = settings(parts, config, config.data.resolution or parts.family.resolution)
    return Path(cache) / "class_images" / f"{slug(class_prompt(config))}-{key(**made)[:10]}"


@dataclass(frozen=True)
class Wanted:
    """What is there and what is to be drawn: indices of pictures, and `chunks` of them, each drawn at a time."""

    manifest: Manifest
    own: PhotoSet
    asked: int | None
    standing: dict[int, str]
    indices: list[int]
    missing: list[int]
    changed: list[str]

    @classmethod
    def found(cls, folder: Path, made: dict[str, object], config: Config, count: int | None, usual: int) -> Wanted:
        """By looking at `folder`, which is tidied for it. `made`: how pictures are made now; usual: the family's number."""
        manifest = opened(folder, made, config)
        own, standing = _own(folder, config, manifest, int(str(made["size"]))), manifest.standing(folder)
        chosen = config.chosen("prior.num_class_images") or not own.photos
        asked = count or (config.prior.num_class_images if chosen else 0)
        wanted = range(max(0, (asked or usual) - len(own.photos)))
        # what was drawn among one's own pictures is used with them; what a cache holds was drawn for others
        beside = Path(config.prior.class_data_dir or folder).resolve() == folder.resolve()
        indices = (sorted(standing) if beside else []) if own.photos and not asked else list(wanted)
        missing = [i for i in indices if i not in standing]
        return cls(manifest, own, asked, standing, indices, missing, manifest.changed(folder, standing))


def ensure(
    painter: Painter, config: Config, folder: Path, *, count: int | None = None, team: Team = ALONE
) -> Stage[PhotoSet]:
    """The class images to train on: all of somebody's own, then drawn ones up to `count`. Without a count (here or in the
    settings) nothing is drawn beside one's own.

    painter: draws with the untouched model; knows the embeddings of `class_prompt(config)` and "" where one is missing
    folder:  `folder_for(parts, config, cache)`
    team:    draws together, a chunk each, and its first writes what came of it: the pictures are those of one process
    """
    parts, folder = painter.parts, Path(folder)
    resolution = config.data.resolution or parts.family.resolution
    made, usual = settings(parts, config, resolution), parts.family.defaults.class_images
    look = Look((resolution, resolution), config.prior.sample_steps, config.prior.guidance_scale)
    painter, phase = replace(painter, look=look), Phase("class images", painter.device)
    # from looking until all is written: another run would draw the same meanwhile, with other last bits
    with Claim(folder) as claim:
        yield from come(claim, phase, f"drawing class images in {folder}", team)
        there = team.told(lambda: Wanted.found(folder, made, config, count, usual))
        yield from _fill(folder, there, painter, class_prompt(config), phase, team)
    own, manifest = there.own, there.manifest
    mine, reused = _beside(own), len(there.indices) - len(there.missing)
    drawn = _drawn(folder, config, manifest, resolution, set(there.indices))
    yield from _about(drawn)
    chosen = replace(own, photos=(*own.photos, *drawn.photos), left=(*own.left, *drawn.left))
    yield phase.end(
        f"{len(there.missing)} class images drawn, {reused} reused{mine}: {len(chosen.photos)} different",
        str(folder if drawn.photos else config.prior.class_data_dir or folder),
    )
    if not chosen.photos:
        raise ConfigError(
            f"no class image in {folder} can be used: {drawn.left[0].why}",
            "look at them, and name another --class_data_dir",
        )
    return chosen


def _fill(folder: Path, there: Wanted, painter: Painter, prompt: str, phase: Phase, team: Team) -> Stage[None]:
    """Draw what is missing; each picture that is done stays, whatever happens to the next."""
    manifest, steps = there.manifest, painter.look.steps
    chunks = list(_chunks(there.missing, len(there.indices), painter.drawing.batch, team.size))
    reused = len(there.indices) - len(there.missing)
    yield phase.start(
        sum(map(len, chunks)) * steps, f"{len(there.missing)} to draw, {reused} reused{_beside(there.own)}"
    )
    yield from _about_own(there.own, len(there.indices), there.asked)
    if there.changed:
        yield Notice(_about_changed(folder, there.changed), "put them into another folder if you want to train on them")
    done = 0
    for first in range(0, len(chunks), team.size):
        together = chunks[first : first + team.size]
        chunk = together[team.rank] if team.rank < len(together) else []
        seeds = [manifest.settings["seed"] + i for i in chunk]
        pictures = (yield from painter.paint([prompt] * len(chunk), seeds, phase, done * steps)) if chunk else []
        done += sum(map(len, together))
        for drawn in team.gather([*zip(chunk, map(_png, pictures), strict=True)]):
            for index, data in drawn:
                if team.leads and index in there.missing:
                    _save(data, folder, index, manifest)
    manifest.images = team.tell(manifest.images)


def _beside(own: PhotoSet) -> str:
    return f", {len(own.photos)} your own" if own.photos else ""


def _chunks(missing: Sequence[int], count: int, batch: int, cards: int = 1) -> Iterator[list[int]]:
    """What is drawn between two moves of the denoiser: whole batches, each with the pictures it has whenever all are drawn.

    The last bits of a picture depend on how many are drawn beside it, so a batch of which one picture is missing is drawn
    whole, and a run that was killed ends with the same pictures as one that was not.
    """
    wanted = {index // batch for index in missing}
    batches = [list(range(b * batch, min((b + 1) * batch, count))) for b in sorted(wanted)]
    together = max(1, min(CHUNK // batch, -(-len(batches) // cards)))
    for start in range(0, len(batches), together):
        yield [index for each in batches[start : start + together] for index in each]


def _own(folder: Path, config: Config, manifest: Manifest, resolution: int) -> PhotoSet:
    """The account of the user's own pictures: those in the named folder, and in `folder`, that were not drawn."""
    named = Path(config.prior.class_data_dir or folder)
    if not named.is_dir() or all(_is_drawn(path, folder, manifest) for path in _pictures_in(named)):
        return PhotoSet(())  # two hundred drawn pictures need not be opened to know that
    return _only(scan_class(named, config, resolution), lambda path: not _is_drawn(path, folder, manifest))


def _drawn(folder: Path, config: Config, manifest: Manifest, resolution: int, wanted: set[int]) -> PhotoSet:
    """The account of the pictures that were drawn, as `wanted` names them, by index."""
    index = {name: i for i, name in manifest.standing(folder).items() if i in wanted}
    if not index:
        return PhotoSet(())
    found = scan_class(folder, config, resolution)
    found = _only(found, lambda path: _is_drawn(path, folder, manifest) and path.name in index)
    return replace(found, photos=tuple(sorted(found.photos, key=lambda photo: index[photo.name])))


def _is_drawn(path: Path, folder: Path, manifest: Manifest) -> bool:
    return path.name in manifest.images and path.parent.resolve() == folder.resolve()


def _pictures_in(folder: Path) -> list[Path]:
    return [path for place in find(folder, "class", "--class_data_dir").places for path in candidates(place.folder)]


def _only(account: PhotoSet, which: Callable[[Path], bool]) -> PhotoSet:
    return replace(
        account,
        photos=tuple(photo for photo in account.photos if which(Path(photo.path))),
        left=tuple(left for left in account.left if which(Path(left.path))),
    )


def _about_own(own: PhotoSet, drawn: int, asked: int | None) -> Iterator[Notice]:
    if not own.photos:
        return
    count = len(own.photos)
    rest = f"{drawn} drawn by the model make up {count + drawn}" if drawn else "all are used, and none is drawn"
    yield Notice(f"{own.folder} holds {count} of your own pictures; {rest}.")
    yield from (Notice(line) for line in own.lines())
    if asked and asked < count:
        yield Notice(f"--num_class_images {asked} draws none beside them; it takes none away.")
    yield from _about(own)


def _about(account: PhotoSet) -> Iterator[Notice]:
    """What the scan found wrong. Of two hundred pictures alike mistakes are told together."""
    for reason, lefts in by_kind(account.left).items():
        names = listed([left.name for left in lefts])
        yield Notice(
            f"{counted(len(lefts), 'class image')} in {account.folder} left out: {reason} ({names}).",
            "delete them, or put others in their place",
            "warning",
        )
    yield from (Notice(text, level="warning") for text in account.problems if not of_left(text))


def _about_changed(folder: Path, changed: list[str]) -> str:
    some = ", ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
    return f"{len(changed)} class images in {folder} have changed since they were drawn and are left out ({some})."


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _save(data: bytes, folder: Path, index: int, manifest: Manifest) -> None:
    """The picture and its row. Its name carries its checksum; a name that is taken by another picture is not touched."""
    sha = digest(data)
    names = (f"{index:05d}-{sha[:12]}{again}.png" for again in ("", *(f"-{n}" for n in range(2, 100))))
    name = next(name for name in names if not (folder / name).exists() or digest_of(folder / name) == sha)
    manifest.images[name] = {"index": index, "sha256": sha}
    try:
        manifest.write(folder)
        if not (folder / name).exists():
            with whole(folder / name) as part:
                part.write_bytes(data)
    except OSError as error:
        raise ConfigError(
            f"cannot write a class image to {folder} ({error.strerror})",
            "free some disk space, or name another --class_data_dir",
        ) from error
