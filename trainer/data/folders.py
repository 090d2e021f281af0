"""Which files of a folder are pictures, and which of its folders count.

Flat folders are diffusers' way. kohya's way is numbered folders: "10_sks dog" holds pictures that an epoch shows ten
times with the prompt "sks dog". A number can only be meant so where it is a plausible count: "2023_holiday" is a year and
"01_front" a place in a list. Pictures in plain folders, or beside numbered ones, may be meant or left over; nobody but the
person can say, so they are asked, and `--folders` is the answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from trainer.data.pictures import PICTURE_SUFFIXES, otherwise_named
from trainer.errors import ConfigError
from trainer.settings.config import Config

NUMBERED = re.compile(r"(\d+)_(.+)")
DRAWN = re.compile(r"(?P<index>\d{5,})-(?P<digest>[0-9a-f]{12})(-\d+)?\.png")  # what this program calls class images
MASK = re.compile(r"(?P<picture>.+?)(\.mask|[-_]mask(label)?)\.png", re.IGNORECASE)  # ours; OneTrainer's, and by hand
MOST_REPEATS = 999  # kohya's guides use 1 to 200; four digits are years and dates
NEVER_MEANT = {"__macosx", "@eadir", "masks", "mask", "thumbnails", "thumbs", ".thumbnails"}
CAMERA_RAW = frozenset(".3fr .arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .raw .rw2 .srw".split())
NOT_READ = frozenset(".psd .xcf .jxl .svg .pdf".split()) | CAMERA_RAW  # pictures to a person, not to Pillow


@dataclass(frozen=True)
class Place:
    """A folder whose pictures count: each `repeats` times an epoch; `words` is the prompt that its name gives, or ""."""

    folder: Path
    repeats: int = 1
    words: str = ""

    @property
    def numbered(self) -> bool:
        return bool(self.words)


@dataclass(frozen=True)
class Found:
    """places: folders that count, in the order of their names; left: (folder, number of pictures, why) of the others."""

    places: tuple[Place, ...]
    left: tuple[tuple[Path, int, str], ...] = ()


def fold(name: str) -> str:
    """A name as people compare names: one Unicode form, without case. Macs write "é" as two characters, others as one."""
    return unicodedata.normalize("NFC", name).casefold()


def meant_as_repeats(name: str) -> tuple[int, str] | None:
    """(repeats, prompt) where a folder's name can be kohya's, else None."""
    match = NUMBERED.fullmatch(name)
    if match is None or match[1].startswith("0") or int(match[1]) > MOST_REPEATS:
        return None
    return int(match[1]), " ".join(match[2].split())


def candidates(folder: Path) -> list[Path]:
    """Files that should be photos: by suffix, visible, no masks. The order is that of their names."""
    files = [
        path
        for path in folder.iterdir()
        if not path.is_dir()  # a link to nowhere is named when it cannot be read
        and path.suffix.lower() in PICTURE_SUFFIXES
        and not path.name.startswith(".")
    ]
    stems = {fold(path.stem) for path in files}
    return sorted(path for path in files if not _is_mask(path.name, stems))


def _is_mask(name: str, stems: set[str]) -> bool:
    """`.mask` says so itself; other programs' names do only beside the picture, for a dog may wear a mask."""
    return Path(name).stem.lower().endswith(".mask") or mask_of(name) in stems


def mask_of(name: str) -> str:
    """The folded stem of the picture that a PNG called `name` is a mask of; empty where its name says nothing of that."""
    found = MASK.fullmatch(name)
    return fold(found["picture"]) if found else ""


def masks(folder: Path) -> dict[str, Path]:
    """Masks in `folder` by the folded stem of their picture, of several the one called `.mask`."""
    stems = {fold(path.stem) for path in candidates(folder)}
    files = sorted(folder.iterdir(), key=lambda path: (not path.stem.lower().endswith(".mask"), path.name))
    found: dict[str, Path] = {}
    for path in files:
        if (stem := mask_of(path.name)) in stems and path.is_file():
            found.setdefault(stem, path)
    return found


def drawn_here(path: Path, digest: str) -> bool:
    """Whether a picture is a class image that this program drew: its name carries the checksum of its bytes."""
    name = DRAWN.fullmatch(path.name)
    return name is not None and digest.startswith(name["digest"])


def find(folder: Path, which: str, flag: str) -> Found:
    """The folders of `folder` that count, as `which` says ("auto", "loose", "numbered", "all", "class"). Raises ConfigError
    where only the person can know."""
    if which == "class":  # whoever names a folder of class images means all that is in it
        which = "all"
    loose, below = candidates(folder), _below(folder)
    numbered = {sub: meant_as_repeats(sub.name) for sub in below}
    kohya = [Place(sub, *numbered[sub]) for sub in below if numbered[sub]]
    plain = [Place(sub) for sub in below if not numbered[sub]]
    own = _itself(folder) if loose else None
    if which == "auto":
        which = _only_meaning(folder, flag, len(loose), kohya, plain, below)
    if which == "numbered" and not kohya:
        raise ConfigError(
            f"no folder in {folder} is numbered as '10_sks dog' is: repeats from 1 to {MOST_REPEATS}, then the prompt",
            "--folders all takes all its folders",
        )
    taken = {
        "loose": [own] if own else [],
        "numbered": kohya,
        "kohya": kohya,
        "all": [*([own] if own else []), *kohya, *plain],
    }[which]
    folders = {place.folder for place in taken}
    left = [(folder, len(loose), "not in a numbered folder")] if own and folder not in folders else []
    why = {
        "loose": "in a folder of its own",
        "kohya": "its name gives no repeats",
        "numbered": "its name gives no repeats",
    }
    left += [(sub, count, why.get(which, "")) for sub, count in below.items() if sub not in folders]
    return Found(tuple(sorted(taken, key=lambda place: (place.folder != folder, place.folder.name))), tuple(left))


def name_class(config: Config) -> None:
    """The class, where only a numbered folder of class images names it, as in kohya's layout: reg/1_dog. What the class is
    called decides whether it is preserved, so whoever asks that asks this first: a run, its plan, a look at its photos."""
    prior = config.prior
    named = (
        prior.class_prompt or config.data.class_name or config.data.instance_data_dir is None
    )  # the built-in subject
    if named or prior.with_prior_preservation is False:
        return
    if not prior.class_data_dir or not Path(prior.class_data_dir).is_dir():
        return
    for place in find(Path(prior.class_data_dir), "class", "--class_data_dir").places:
        if place.numbered:
            return config.settle("prior.class_prompt", place.words, f"the folder {place.folder.name}")


def _below(folder: Path) -> dict[Path, int]:
    """Folders in `folder` that hold pictures, with how many."""
    return {sub: count for sub in _folders(folder) if (count := len(candidates(sub)))}


def further_down(folder: Path) -> dict[Path, int]:
    """Folders two and three below `folder` that hold pictures, with how many: nobody looks there."""
    found = {}
    for sub in _folders(folder):
        for deep in sorted([*_folders(sub), *(last for each in _folders(sub) for last in _folders(each))]):
            if count := len(candidates(deep)):
                found[deep] = count
    return found


def unread_below(folder: Path, told: Iterable[Path] = ()) -> Iterator[str]:
    """Pictures in the folders of `folder` that are not read, such as camera raws: a sentence's beginning for each folder but
    those in `told`."""
    for sub in _folders(folder):
        if sub not in told and (said := others(sub.iterdir())):
            yield f"{said} in {sub.name}"


def _folders(folder: Path) -> list[Path]:
    return sorted(
        sub
        for sub in folder.iterdir()
        if sub.is_dir() and not sub.name.startswith(".") and sub.name.lower() not in NEVER_MEANT
    )


def _itself(folder: Path) -> Place:
    """A folder that was named itself may be one of kohya's; a lone word behind the number is no prompt there."""
    meant = meant_as_repeats(folder.resolve().name)
    return Place(folder, *meant) if meant and " " in meant[1] else Place(folder)


def _only_meaning(
    folder: Path, flag: str, loose: int, kohya: list[Place], plain: list[Place], count: dict[Path, int]
) -> str:
    """What "auto" means here. Raises ConfigError where there is more than one meaning, or none."""
    if not loose and not kohya and plain:
        sub = plain[0].folder
        if len(plain) == 1:
            raise ConfigError(
                f"{folder} has no photos itself, but its folder {sub.name} has", f"use {flag} {quote(str(sub))}"
            )
        listed = _listed(plain, count)
        raise ConfigError(
            f"{folder} has no photos itself, but its folders have: {listed}",
            f"name one of them, such as {flag} {quote(str(sub))}, or take all with --folders all",
        )
    if not loose:
        return "kohya"
    if not kohya and not plain:
        return "loose"
    of_kohya = f"the numbered folders: {_listed(kohya, count)}" if kohya else ""
    of_others = f"other folders: {_listed(plain, count)}" if plain else ""
    choices = [f"--folders loose takes {loose} beside them"]
    choices += ["--folders numbered takes the numbered ones"] if kohya else []
    total = loose + sum(count.values())
    raise ConfigError(
        f"{folder} holds {_pictures(loose)} and {_pictures(total - loose)} in "
        + " and ".join(filter(None, (of_kohya, of_others))),
        f"say which are meant: {', '.join(choices)}, --folders all takes all {total}",
    )


def _listed(places: list[Place], count: dict[Path, int]) -> str:
    return ", ".join(f"{place.folder.name} ({count[place.folder]})" for place in places)


def _pictures(count: int) -> str:
    return f"{count} picture" + "s" * (count != 1)


def others(files: Iterable[Path]) -> str:
    """What a person would call pictures among files that are not read: "6 camera raws (.cr2), 1 .psd"; empty: nothing."""
    kinds: dict[str, int] = {}
    for path in files:
        suffix = path.suffix.lower()
        if suffix in NOT_READ:
            kind = f"camera raw {suffix}" if suffix in CAMERA_RAW else suffix
            kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def overlooked(files: Iterable[Path], masks: bool) -> Iterator[str]:
    """What among files that nobody read was meant for the run, it seems: a sentence for each kind. `masks`: they are used."""
    kept = sorted(path for path in files if not path.name.startswith(".") and path.suffix.lower() not in NOT_READ)
    idle = [path for path in kept if path.stem.lower().endswith(".mask")]
    if masks and idle:
        yield f"{listed([path.name for path in idle])} not used: a mask is a PNG beside its picture, a.mask.png beside a.jpg"
    if names := otherwise_named(path for path in kept if path not in idle):
        hold = "holds a picture, but its name does" if len(names) == 1 else "hold pictures, but their names do"
        yield f"{listed(names)} {hold} not say so: end the name with .jpg or .png to train on it"


def listed(names: list[str], most: int = 5) -> str:
    """ "a, b, c and 4 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def near(folder: Path) -> str:
    """A neighbour with almost the same name, as a suggestion."""
    from difflib import get_close_matches

    if not folder.parent.is_dir():
        return ""
    names = get_close_matches(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()], n=1)
    return f"did you mean {folder.parent / names[0]}?" if names else ""
