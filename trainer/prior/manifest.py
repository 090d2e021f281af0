"""Which class images a folder holds, how they were made, and whether they still are what was drawn.

A row is written before its picture, so a drawn picture never stands there without one, where it would be taken for the
user's own. A row whose picture is missing, or has other bytes than were written, counts for nothing: that picture is
drawn again. Pictures that have no row are the user's own. Which of all these a run trained on stands in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainer.data.folders import DRAWN, find
from trainer.data.photos import PhotoSet, candidates, class_prompt
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.files.regular import data
from trainer.files.whole import tidy, whole
from trainer.models.base import Parts
from trainer.settings.config import Config

MANIFEST, USED = "manifest.json", "class_images.json"


class Damaged(ValueError):
    """A manifest that cannot be read, or is not what was written."""


@dataclass
class Manifest:
    """settings: how pictures are made; images: file name -> {"index": i, "sha256": hex}."""

    settings: dict[str, object]
    images: dict[str, dict[str, object]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of `folder`, None where it has none. Raises Damaged."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            values = json.loads(data(path).decode("utf-8"))
            found = cls(dict(values["settings"]), {name: dict(row) for name, row in values["images"].items()})
            intact = values.get("checksum", found.checksum) == found.checksum  # older versions wrote none
            intact = intact and all({"index", "sha256"} <= row.keys() for row in found.images.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{path} is damaged") from error
        if not intact:
            raise Damaged(f"{path} is damaged")
        return found

    @classmethod
    def recovered(cls, folder: Path, settings: dict[str, object]) -> Manifest:
        """A manifest from the names alone, for a folder that only this program fills: they carry index and checksum."""
        found = cls(settings)
        for path in sorted(folder.glob("*.png")):
            name = DRAWN.fullmatch(path.name)
            if name and (sha := digest_of(path)).startswith(name["digest"]):
                found.images[path.name] = {"index": int(name["index"]), "sha256": sha}
        return found

    def write(self, folder: Path) -> None:
        with whole(folder / MANIFEST) as part:
            part.write_text(json.dumps(asdict(self) | {"checksum": self.checksum}, indent=1), encoding="utf-8")

    @property
    def checksum(self) -> str:
        return digest(json.dumps(asdict(self), sort_keys=True).encode())

    def standing(self, folder: Path) -> dict[int, str]:
        """Index -> name of the pictures that are still there as they were written."""
        return {
            row["index"]: name
            for name, row in sorted(self.images.items(), reverse=True)  # a first name counts more than a second one
            if digest_of(folder / name) == row["sha256"]
        }

    def changed(self, folder: Path, standing: dict[int, str]) -> list[str]:
        """Names of drawn pictures that are there with other bytes than were written. The second picture of an index, which
        two runs left that drew at once, is not one of them."""
        spare = self.images.keys() - set(standing.values())
        there = (name for name in spare if (folder / name).is_file())
        return sorted(name for name in there if digest_of(folder / name) != self.images[name]["sha256"])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(path: Path) -> str:
    """The digest of a file; empty where there is none that can be read."""
    try:
        return digest(data(path))
    except OSError:
        return ""


def settings(parts: Parts, config: Config, resolution: int) -> dict[str, object]:
    """Everything class images depend on, as the manifest keeps it."""
    made = {"model": parts.digest, "predicts": parts.prediction_type} | _asked(config, resolution)
    rescale = parts.noise().guidance_rescale
    return made | ({"guidance_rescale": rescale} if rescale else {})


def _asked(config: Config, resolution: int) -> dict[str, object]:
    """The part of it that is known before a model is loaded."""
    return {
        "prompt": class_prompt(config),
        "seed": config.prior.class_seed or 0,
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
    if folder.is_dir() and (manifest := _read_own(folder)) is not None:
        _refuse_differences(folder, manifest, _as_begun(manifest, _asked(config, resolution), config))


def theirs(folder: Path) -> bool:
    """Whether somebody keeps pictures of their own in `folder`, and none of ours: nothing is drawn there."""
    if not folder.is_dir():
        return False
    # pictures first: where another run begins to draw meanwhile, what is seen of it has its row already
    pictures = any(candidates(place.folder) for place in find(folder, "class", "--class_data_dir").places)
    try:
        manifest = Manifest.read(folder)
    except Damaged:
        return False  # `opened` refuses it with the way out
    return pictures and not (manifest is not None and manifest.images)


def record(run: Path, chosen: PhotoSet) -> None:
    """Every class picture that a run trains on, with its words, beside the run's settings."""
    rows = [
        {
            "file": str(Path(photo.path).resolve()),
            "digest": photo.digest,
            "prompt": photo.prompt,
            "words": photo.words,
            "repeats": photo.repeats,
        }
        for photo in chosen.photos
    ]
    run.mkdir(parents=True, exist_ok=True)
    with whole(run / USED) as part:
        part.write_text(json.dumps({"images": rows}, indent=1, ensure_ascii=False), encoding="utf-8")


def opened(folder: Path, made: dict[str, object], config: Config) -> Manifest:
    """The manifest of `folder`, which is made where it is missing, and tidied of what a killed run left.

    In the cache, where the folder's name stands for `made`, a manifest that is lost or damaged is made again. In a folder
    that somebody named it is refused, for nobody knows which pictures are whose.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
    except OSError as error:
        raise ConfigError(
            f"the folder of class images {folder} cannot be made ({error.strerror})",
            "name a writable one with --class_data_dir",
        ) from error
    named = config.prior.class_data_dir
    if named is None or Path(named) != folder:
        try:
            manifest = Manifest.read(folder) or Manifest(made)
        except Damaged:
            manifest = Manifest(made)
        manifest.images = Manifest.recovered(folder, made).images | manifest.images
    else:
        manifest = _read_own(folder) or Manifest(made)
    _refuse_differences(folder, manifest, _as_begun(manifest, made, config))
    return manifest


def _as_begun(manifest: Manifest, made: dict[str, object], config: Config) -> dict[str, object]:
    """`made` with the seed that the folder was begun with, unless somebody names one: another --seed is another order of
    training, and no reason to draw the class again."""
    begun = manifest.settings.get("seed", made["seed"])
    return made if config.prior.class_seed is not None else made | {"seed": begun}


def _read_own(folder: Path) -> Manifest | None:
    try:
        return Manifest.read(folder)
    except Damaged as error:
        raise ConfigError(
            str(error), "remove it: its pictures then count as your own; or name another --class_data_dir"
        ) from error


def _refuse_differences(folder: Path, manifest: Manifest, made: dict[str, object]) -> None:
    there = manifest.settings
    differs = [f"{k}: {there.get(k)!r} there, {v!r} now" for k, v in made.items() if there.get(k) != v]
    if differs:
        raise ConfigError(
            f"the class images in {folder} were made in another way ({'; '.join(differs)})",
            "leave --class_data_dir out (each way has its own folder then), name an empty folder, or set these back",
        )
