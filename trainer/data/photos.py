"""A folder of photos, understood before anything is loaded: which pictures, with which prompt, and what is wrong
with them.

Every picture is decoded once here, so a damaged one is named now and can never stop a run in the middle. Flat
folders (diffusers), `name.txt` captions, `metadata.jsonl`, and kohya's "10_sks dog" folders (repeats, then the
caption) are read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.augment import recommendation
from trainer.data.crops import Size, center, kept_share
from trainer.data.pictures import PICTURE_SUFFIXES, Picture, Unreadable, read
from trainer.errors import ConfigError
from trainer.settings.config import Config, Data

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"
KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Photo:
    """size: (width, height) upright; digest: sha256 of the bytes; mask: "", "alpha" or the mask file's path;
    repeats: how often an epoch shows it (kohya folders; else 1)."""

    path: str
    prompt: str
    size: Size
    digest: str
    mask: str = ""
    repeats: int = 1

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True)
class PhotoSet:
    """photos, in the order of their paths; ignored: files that are none; problems and advice: one sentence each."""

    photos: tuple[Photo, ...]
    ignored: int = 0
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    folder: str = ""

    @property
    def prompts(self) -> list[str]:
        """Distinct prompts, in order of appearance."""
        return list(dict.fromkeys(photo.prompt for photo in self.photos))

    @property
    def summary(self) -> str:
        """One sentence: "5 photos, 2 portrait, smallest 480 px; prompt 'a photo of sks dog' for all"."""
        if not self.photos:
            return "no photos"
        count = len(self.photos)
        portrait = sum(photo.size[1] > photo.size[0] for photo in self.photos)
        parts = [f"{count} photo" + "s" * (count != 1)]
        parts += [f"{portrait} portrait"] if portrait else []
        parts += [f"smallest {min(min(photo.size) for photo in self.photos)} px"]
        masked = sum(bool(photo.mask) for photo in self.photos)
        parts += [f"{masked} with a mask"] if masked else []
        parts += [f"{self.ignored} other file{'s' * (self.ignored != 1)} ignored"] if self.ignored else []
        return ", ".join(parts) + "; " + _prompt_words(self.photos)


def instance_prompt(data: Data) -> str:
    """The prompt of photos without a caption of their own."""
    return data.instance_prompt or " ".join(
        ("a photo of", data.identifier, *([data.class_name] if data.class_name else []))
    )


def class_prompt(config: Config) -> str:
    """The prompt of the class. Raises ConfigError where no class is named."""
    if config.prior.class_prompt:
        return config.prior.class_prompt
    if not config.data.class_name:
        raise ConfigError(
            "prior preservation needs to know the class of the subject",
            "add --class_name dog (or --class_prompt 'a photo of a dog')",
        )
    article = "an" if config.data.class_name[0].lower() in "aeio" else "a"
    return f"a photo of {article} {config.data.class_name}"


def scan(data: Data, resolution: int | None = None) -> PhotoSet:
    """The subject's photos. `resolution`: the model's own, used where [data] names none. Raises as scan_folder."""
    assert data.instance_data_dir, "the built-in subject's folder is filled in before scanning"
    resolution = data.resolution or resolution or 512
    photos = scan_folder(
        Path(data.instance_data_dir),
        instance_prompt(data),
        resolution,
        captions=data.captions,
        masks=data.masked_loss,
        buckets=data.buckets,
        flag="--instance_data_dir",
    )
    tip = recommendation(len(photos.photos), data)
    if data.masked_loss and not any(photo.mask for photo in photos.photos):
        raise ConfigError(
            "masked_loss is on, but no photo has an alpha channel or a mask",
            "put name.mask.png beside name.jpg (white: subject, black: ignore), or leave --masked_loss out",
        )
    return PhotoSet(photos.photos, photos.ignored, photos.problems, (tip,) if tip else (), photos.folder)


def scan_folder(
    folder: Path,
    prompt: str,
    resolution: int,
    *,
    captions: bool = True,
    masks: bool = False,
    buckets: bool = False,
    flag: str = "the folder",
) -> PhotoSet:
    """All pictures in `folder`, each decoded once. Raises ConfigError where there is no folder or no usable picture."""
    if not folder.exists():
        raise ConfigError(
            f"{flag} {folder} does not exist",
            _near(folder) or "check the spelling, or put 3 to 6 photos of the subject there",
        )
    if not folder.is_dir():
        raise ConfigError(f"{flag} {folder} is a file", f"name its folder: {folder.parent}")
    found, problems, ignored, seen = [], [], 0, {}
    for place, repeats, caption in _photo_folders(folder):
        metadata = _metadata(place)
        files = candidates(place)
        ignored += _junk(place, files, captions, masks)
        for path in files:
            words = (_caption(path, metadata) if captions else "") or caption or prompt
            try:
                picture = read(path)
            except Unreadable as error:
                problems.append(f"{path.name} is left out: {error}")
                continue
            if (twin := seen.get((picture.digest, words))) is not None:
                problems.append(f"{path.name} is left out: the same picture as {twin}")
                continue
            if min(picture.size) < smallest_side(resolution):
                size = "{} x {}".format(*picture.size)
                problems.append(f"{path.name} is left out: {size} px is too small for {resolution} px")
                continue
            seen[picture.digest, words] = path.name
            problems += _complaints(path, picture, resolution, buckets)
            mask = _mask(path, picture, problems) if masks else ""
            found.append(Photo(str(path), words, picture.size, picture.digest, mask, repeats))
    if not found:
        raise _empty(folder, flag, problems)
    return PhotoSet(tuple(found), ignored, tuple(problems), (), str(folder))


def smallest_side(resolution: int) -> float:
    """Pictures with a shorter side are left out: enlarged more than four times, they teach nothing but blur."""
    return resolution / 4


def _photo_folders(folder: Path) -> Iterator[tuple[Path, int, str]]:
    """(folder, repeats, caption): the folder itself, or kohya's numbered folders in it (or it being one)."""
    numbered = [
        (sub, match) for sub in sorted(folder.iterdir()) if sub.is_dir() and (match := KOHYA_FOLDER.fullmatch(sub.name))
    ]
    if numbered:
        for sub, match in numbered:
            yield sub, int(match[1]), match[2]
    elif (match := KOHYA_FOLDER.fullmatch(folder.name)) and " " in match[2]:
        yield folder, int(match[1]), match[2]
    else:
        yield folder, 1, ""


def candidates(folder: Path) -> list[Path]:
    """Files that should be photos: by suffix, visible, no masks."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.is_dir()  # a link to nowhere is named when it cannot be read
        and path.suffix.lower() in PICTURE_SUFFIXES
        and not path.name.startswith(".")
        and not path.stem.lower().endswith(".mask")
    )


def _junk(folder: Path, photos: list[Path], captions: bool, masks: bool) -> int:
    """How many files are neither photos nor belong to one: its caption, its mask."""
    used = {path.name for path in photos}
    if captions:
        used |= {path.stem + suffix for path in photos for suffix in CAPTION_SUFFIXES} | {METADATA}
    if masks:
        used |= {path.stem + ".mask.png" for path in photos}
    return sum(path.name not in used for path in folder.iterdir() if not path.is_dir())


def _caption(path: Path, metadata: dict[str, str]) -> str:
    for suffix in CAPTION_SUFFIXES:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            try:
                return " ".join(beside.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"the caption {beside} is not UTF-8 text", "save it as UTF-8, or add --no-captions"
                ) from error
    return metadata.get(path.name, "")


def _metadata(folder: Path) -> dict[str, str]:
    """File name -> caption from metadata.jsonl (Hugging Face's imagefolder: file_name and text)."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[row["file_name"]] = row.get("text") or row.get("caption") or row.get("prompt") or ""
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} line {number} is not a JSON object with file_name and text",
                "mend the line, or remove the file",
            ) from error
    return captions


def _mask(path: Path, picture: Picture, problems: list[str]) -> str:
    """The path of name.mask.png if there is one, else "alpha" for a picture with transparency, else nothing."""
    beside = path.with_name(path.stem + ".mask.png")
    if not beside.is_file():
        return "alpha" if picture.alpha is not None and picture.alpha.getextrema()[1] > 0 else ""
    try:
        mask = read(beside)
    except Unreadable as error:
        problems.append(f"{beside.name} is not used: {error}")
        return ""
    if mask.size != picture.size:
        problems.append(f"{beside.name} is not used: its size differs from {path.name}'s")
    elif mask.rgb.convert("L").getextrema()[1] == 0:
        problems.append(f"{beside.name} is not used: it is black everywhere")
    else:
        return str(beside)
    return ""


def _complaints(path: Path, picture: Picture, resolution: int, buckets: bool) -> Iterator[str]:
    """What is worth saying about a picture that is used all the same."""
    width, height = picture.size
    if min(width, height) < resolution:
        yield f"{path.name} is {width} x {height} px and will be enlarged to {resolution} px, which blurs it"
    kept = kept_share(picture.size, center(picture.size, (resolution, resolution)))
    if kept < 0.5 and not buckets:
        shape = f"{width} x {height} px"
        yield f"{path.name} is {shape}: the square crop keeps {kept:.0%} of it; crop it by hand, or use --buckets"


def _empty(folder: Path, flag: str, problems: list[str]) -> ConfigError:
    if problems:
        return ConfigError(
            f"no picture in {folder} can be used:\n  " + "\n  ".join(problems), "add photos that can be opened"
        )
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        if candidates(sub):
            return ConfigError(
                f"{folder} has no photos itself, but its folder {sub.name} has", f"use {flag} {folder / sub.name}"
            )
    kinds = ", ".join(
        sorted(suffix.lstrip(".") for suffix in PICTURE_SUFFIXES & {".jpg", ".png", ".webp", ".heic", ".tif"})
    )
    return ConfigError(f"no photos in {folder}", f"put 3 to 6 photos of the subject there ({kinds} ...)")


def _near(folder: Path) -> str:
    """A neighbour with almost the same name, as a suggestion."""
    from difflib import get_close_matches

    if not folder.parent.is_dir():
        return ""
    names = get_close_matches(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()], n=1)
    return f"did you mean {folder.parent / names[0]}?" if names else ""


def _prompt_words(photos: tuple[Photo, ...]) -> str:
    counts = Counter(photo.prompt for photo in photos)
    prompt, count = counts.most_common(1)[0]
    if count == len(photos):
        return f"prompt '{prompt}' for " + ("it" if count == 1 else "all")
    if count == 1:
        return f"{len(counts)} prompts, one a photo, such as '{prompt}'"
    return f"{len(counts)} prompts, '{prompt}' for {count}"
