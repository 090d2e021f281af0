"""Class images: what the untouched model draws for "a photo of a dog", so that training can hold on to it (arXiv
2208.12242).

Picture i is always drawn from seed base + i and in the same company, so topping a folder up, or going on after a kill,
gives the pictures of making all at once. A manifest beside them says how they were made (`manifest`); a folder is only
added to when that is how they would be made now. Pictures that are not in the manifest are the user's own: they count,
and nothing is ever overwritten.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from trainer.data.photos import PhotoSet, candidates, class_prompt, scan_folder, smallest_side
from trainer.data.pictures import Unreadable, read
from trainer.draw.painter import Painter
from trainer.draw.preview import slug
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import Notice, Stage
from trainer.files.store import key
from trainer.files.whole import whole
from trainer.machine.phase import Phase
from trainer.models.base import Parts
from trainer.prior.manifest import Manifest, digest, digest_of, opened, settings
from trainer.settings.config import Config

CHUNK = 16  # pictures between two moves of the denoiser off the card: little is lost when somebody interrupts


def folder_for(parts: Parts, config: Config, cache: Path) -> Path:
    """--class_data_dir, or a folder in the cache named by the class prompt and by how its pictures are made."""
    if config.prior.class_data_dir:
        return Path(config.prior.class_data_dir)
    made = settings(parts, config, config.data.resolution or parts.family.resolution)
    return Path(cache) / "class_images" / f"{slug(class_prompt(config))}-{key(**made)[:10]}"


def ensure(painter: Painter, config: Config, folder: Path, *, count: int | None = None) -> Stage[PhotoSet]:
    """Fill `folder` up to `count` class images, which are returned.

    painter: draws with the untouched model; knows the embeddings of `class_prompt(config)` and "" where one is missing
    folder:  `folder_for(parts, config, cache)`
    """
    parts, folder = painter.parts, Path(folder)
    resolution = config.data.resolution or parts.family.resolution
    count = count or config.prior.num_class_images or parts.family.defaults.class_images
    manifest = opened(folder, settings(parts, config, resolution), ours=config.prior.class_data_dir is None)
    own, standing = _own(folder, manifest, resolution), manifest.standing(folder)
    missing = [i for i in range(max(0, count - own)) if i not in standing]
    look = Look((resolution, resolution), config.prior.sample_steps, config.prior.guidance_scale)
    painter, prompt = replace(painter, look=look), class_prompt(config)
    chunks = list(_chunks(missing, max(0, count - own), painter.drawing.batch))
    total, mine = sum(map(len, chunks)), f", {own} your own" if own else ""
    phase = Phase("class images", painter.device)
    yield phase.start(total * look.steps, f"{len(missing)} to draw, {len(standing)} reused{mine}")
    if own and (missing or standing):
        yield Notice(f"{folder} holds {own} of your own pictures; {count - own} drawn by the model make up {count}.")
    if changed := manifest.changed(folder, standing):
        yield Notice(_about_changed(folder, changed), "put them into another folder if you want to train on them")
    done = 0
    for indices in chunks:
        seeds = [config.train.seed + i for i in indices]
        pictures = yield from painter.paint([prompt] * len(indices), seeds, phase, done * look.steps)
        done += len(indices)
        for index, picture in zip(indices, pictures, strict=True):
            if index in missing:
                _save(picture, folder, index, manifest)
    chosen = _chosen(folder, config, manifest, count, resolution)
    different = len({photo.digest for photo in chosen.photos})
    yield phase.end(
        f"{len(missing)} class images drawn, {len(standing)} reused{mine}: {different} different", str(folder)
    )
    if different < count:
        yield Notice(
            f"Training sees {different} different class images, {count} were asked for: some in {folder} are the same picture.",
            "remove the copies among your own",
            "warning",
        )
    return chosen


def _chunks(missing: Sequence[int], count: int, batch: int) -> Iterator[list[int]]:
    """What is drawn between two moves of the denoiser: whole batches, each with the pictures it has whenever all are drawn.

    The last bits of a picture depend on how many are drawn beside it, so a batch of which one picture is missing is drawn
    whole, and a run that was killed ends with the same pictures as one that was not.
    """
    wanted = {index // batch for index in missing}
    batches = [list(range(b * batch, min((b + 1) * batch, count))) for b in sorted(wanted)]
    together = max(1, CHUNK // batch)
    for start in range(0, len(batches), together):
        yield [index for each in batches[start : start + together] for index in each]


def _own(folder: Path, manifest: Manifest, resolution: int) -> int:
    """How many pictures of the user's are there that scanning will keep: one that cannot be opened is made up for."""

    def usable(path: Path) -> bool:
        try:
            return min(read(path).size) >= smallest_side(resolution)
        except Unreadable:
            return False

    return sum(path.name not in manifest.images and usable(path) for path in candidates(folder))


def _about_changed(folder: Path, changed: list[str]) -> str:
    some = ", ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
    return f"{len(changed)} class images in {folder} have changed since they were drawn and are left out ({some})."


def _chosen(folder: Path, config: Config, manifest: Manifest, count: int, resolution: int) -> PhotoSet:
    """The user's own pictures first, then drawn ones by index, `count` together."""
    found = scan_folder(
        folder, class_prompt(config), resolution, captions=config.data.captions, flag="--class_data_dir"
    )
    drawn = {name: index for index, name in manifest.standing(folder).items()}
    own = [photo for photo in found.photos if photo.name not in manifest.images]
    made = sorted((photo for photo in found.photos if photo.name in drawn), key=lambda photo: drawn[photo.name])
    return PhotoSet((*own, *made)[:count], found.ignored, found.problems, (), str(folder))


def _save(picture: Image.Image, folder: Path, index: int, manifest: Manifest) -> None:
    """The picture and its row. Its name carries its checksum; a name that is taken by another picture is not touched."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data, sha = buffer.getvalue(), digest(buffer.getvalue())
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
