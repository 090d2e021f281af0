"""Class images: what the untouched model draws for "a photo of a dog", so that training can hold on to it (arXiv
2208.12242).

Picture i is always drawn from seed base + i, so topping a folder up gives the same pictures as making all at
once. A manifest beside them says how they were made; a folder is only added to when that is how they would be
made now. Pictures that are not in the manifest are the user's own: they count, and nothing is ever overwritten.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field, replace
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
from trainer.files.whole import tidy, whole
from trainer.machine.phase import Phase
from trainer.models.base import Parts
from trainer.settings.config import Config

MANIFEST = "manifest.json"
CHUNK = 16  # pictures between two moves of the denoiser off the card: little is lost when somebody interrupts


@dataclass
class Manifest:
    """settings: how pictures are made; images: file name -> {"index": i, "sha256": hex}."""

    settings: dict[str, object]
    images: dict[str, dict[str, object]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(dict(values["settings"]), dict(values["images"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path} is damaged", "remove it: its pictures then count as your own; or name another --class_data_dir"
            ) from error

    def write(self, folder: Path) -> None:
        with whole(folder / MANIFEST) as part:
            part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def drawn(self, folder: Path) -> set[int]:
        """Indices of the pictures that are still there as they were written."""
        return {
            row["index"]
            for name, row in self.images.items()
            if (folder / name).is_file() and _digest((folder / name).read_bytes()) == row["sha256"]
        }


def settings(parts: Parts, config: Config, resolution: int) -> dict[str, object]:
    """Everything class images depend on, as the manifest keeps it."""
    return {"model": parts.digest, "predicts": parts.prediction_type} | _asked(config, resolution)


def _asked(config: Config, resolution: int) -> dict[str, object]:
    """The part of it that is known before a model is loaded."""
    return {
        "prompt": class_prompt(config),
        "seed": config.train.seed,
        "size": resolution,
        "sampler": Look.sampler,
        "steps": config.prior.sample_steps,
        "guidance": config.prior.guidance_scale,
    }


def check_early(config: Config, resolution: int) -> None:
    """What can be refused about --class_data_dir before anything is loaded. Raises ConfigError; writes nothing."""
    if config.prior.class_data_dir is None:
        return
    folder = Path(config.prior.class_data_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--class_data_dir {folder} is a file", f"name its folder: {folder.parent}")
    if folder.is_dir() and (manifest := Manifest.read(folder)) is not None:
        _refuse_differences(folder, manifest, _asked(config, resolution))


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
    manifest, own = check(parts, config, folder)
    drawn = manifest.drawn(folder)
    missing = [i for i in range(max(0, count - own)) if i not in drawn]
    look = Look((resolution, resolution), config.prior.sample_steps, config.prior.guidance_scale)
    painter, chunk = replace(painter, look=look), max(CHUNK, painter.drawing.batch)
    phase = Phase("class images", painter.device)
    yield phase.start(
        len(missing) * look.steps, f"{len(missing)} to draw, {len(drawn)} reused" + (f", {own} your own" if own else "")
    )
    if own and (missing or drawn):
        yield Notice(f"{folder} holds {own} of your own pictures; {count - own} drawn by the model make up {count}.")
    prompt = class_prompt(config)
    for start in range(0, len(missing), chunk):
        indices = missing[start : start + chunk]
        seeds = [config.train.seed + i for i in indices]
        pictures = yield from painter.paint([prompt] * len(indices), seeds, phase, start * look.steps)
        for index, picture in zip(indices, pictures, strict=True):
            name, digest = _save(picture, folder, index)
            manifest.images[name] = {"index": index, "sha256": digest}
        manifest.write(folder)
    yield phase.end(
        f"{len(missing)} class images drawn, {len(drawn)} reused" + (f", {own} your own" if own else ""), str(folder)
    )
    return _chosen(folder, prompt, resolution, config, manifest, count)


def check(parts: Parts, config: Config, folder: Path) -> tuple[Manifest, int]:
    """(manifest, number of the user's own pictures). Raises ConfigError where `folder` was made in another way."""
    made = settings(parts, config, config.data.resolution or parts.family.resolution)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
    except OSError as error:
        raise ConfigError(
            f"the folder of class images {folder} cannot be made ({error.strerror})",
            "name a writable one with --class_data_dir",
        ) from error
    manifest = Manifest.read(folder) or Manifest(made)
    _refuse_differences(folder, manifest, made)
    return manifest, len(
        [path for path in candidates(folder) if path.name not in manifest.images and _usable(path, made["size"])]
    )


def _refuse_differences(folder: Path, manifest: Manifest, made: dict[str, object]) -> None:
    there = manifest.settings
    differs = [f"{k}: {there.get(k)!r} there, {v!r} now" for k, v in made.items() if there.get(k) != v]
    if differs:
        raise ConfigError(
            f"the class images in {folder} were made in another way ({'; '.join(differs)})",
            "leave --class_data_dir out (each way has its own folder then), name an empty folder, or set these back",
        )


def _usable(path: Path, resolution: int) -> bool:
    """Whether scanning will keep the picture, so that one that cannot be opened is made up for."""
    try:
        return min(read(path).size) >= smallest_side(resolution)
    except Unreadable:
        return False


def _chosen(folder: Path, prompt: str, resolution: int, config: Config, manifest: Manifest, count: int) -> PhotoSet:
    """The user's own pictures first, then drawn ones by index, `count` together."""
    found = scan_folder(folder, prompt, resolution, captions=config.data.captions, flag="--class_data_dir")
    order = sorted(
        found.photos,
        key=lambda photo: (
            photo.name in manifest.images,
            manifest.images.get(photo.name, {}).get("index", 0),
            photo.name,
        ),
    )
    return PhotoSet(tuple(order[:count]), found.ignored, found.problems, (), str(folder))


def _save(picture: Image.Image, folder: Path, index: int) -> tuple[str, str]:
    """(file name, sha256). The name carries the hash, so a name that is taken is this very picture, or not touched."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    digest = _digest(buffer.getvalue())
    name = f"{index:05d}-{digest[:12]}.png"
    for again in range(2, 100):
        path = folder / name
        if not path.exists():
            break
        if _digest(path.read_bytes()) == digest:
            return name, digest
        name = f"{index:05d}-{digest[:12]}-{again}.png"
    try:
        with whole(folder / name) as part:
            part.write_bytes(buffer.getvalue())
    except OSError as error:
        raise ConfigError(
            f"cannot write a class image to {folder} ({error.strerror})",
            "free some disk space, or name another --class_data_dir",
        ) from error
    return name, digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
