"""The account of a folder: which pictures are trained on, with which words from where and how often, and what was left,
and why. Whoever wants to know anything about the photos asks this; what it says is what the batches hold.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.crops import Size
from trainer.data.words import listed

MOST = 8  # prompts in the head of a run


@dataclass(frozen=True)
class Photo:
    """size: (width, height) upright; digest: of the bytes, as `pictures.read` gives it; mask: "", "alpha" or the mask
    file's path; repeats: how often an epoch shows it (kohya folders; else 1); words: where the prompt comes from;
    size_cut: of the plain crop, kept: the share of the picture inside it; bits: what it looks like (`looks`)."""

    path: str
    prompt: str
    size: Size
    digest: str
    mask: str = ""
    repeats: int = 1
    words: str = ""
    size_cut: Size = (0, 0)
    kept: float = 1.0
    bits: int | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def captioned(self) -> bool:
        """Whether its prompt stands in a file beside it."""
        return Path(self.words).suffix.lower() in (".txt", ".caption", ".jsonl", ".csv")


@dataclass(frozen=True)
class Left:
    """A picture that is not trained on, and why."""

    path: str
    why: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def kind(self) -> str:
        """Why, in words that many pictures share."""
        if self.why.startswith("the same picture as"):
            return "the same picture as another"
        if " px is too small for " in self.why:
            return "too small for " + self.why.partition(" is too small for ")[2]
        return "damaged or cut short" if self.why.startswith("damaged or cut short") else self.why


@dataclass(frozen=True)
class PhotoSet:
    """photos, in the order of their paths; left: pictures that are not used; ignored: files that are neither; problems
    and advice: one sentence each; folder: the one that was named."""

    photos: tuple[Photo, ...]
    ignored: int = 0
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    folder: str = ""
    left: tuple[Left, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """Distinct prompts, in order of appearance."""
        return list(dict.fromkeys(photo.prompt for photo in self.photos))

    @property
    def shown(self) -> int:
        """Photos in an epoch, repeats counted."""
        return sum(photo.repeats for photo in self.photos)

    @property
    def summary(self) -> str:
        """One sentence: "5 photos, 2 portrait, smallest 480 px; prompt 'a photo of hta dog' for all"."""
        if not self.photos:
            return "no photos"
        count = len(self.photos)
        portrait = sum(photo.size[1] > photo.size[0] for photo in self.photos)
        parts = [counted(count, "photo")]
        parts += [f"{portrait} portrait"] if portrait else []
        parts += [f"smallest {min(min(photo.size) for photo in self.photos)} px"]
        masked = sum(bool(photo.mask) for photo in self.photos)
        parts += [f"{masked} with a mask"] if masked else []
        parts += [f"{self.ignored} other file{'s' * (self.ignored != 1)} ignored"] if self.ignored else []
        return ", ".join(parts) + "; " + _prompt_words(self.photos)

    def lines(self) -> Iterator[str]:
        """What was taken, left and shown how often by folder, and which prompts come from where; for the head of a run."""
        yield from self._by_folder()
        yield from self._by_prompt()
        yield from self._by_bucket()

    def _by_folder(self) -> Iterator[str]:
        root, repeated = Path(self.folder), any(photo.repeats > 1 for photo in self.photos)
        folders = dict.fromkeys(Path(each.path).parent for each in (*self.photos, *self.left))
        if not repeated and not self.left and len(folders) < 2:
            return
        for folder in folders:
            taken = [photo for photo in self.photos if Path(photo.path).parent == folder]
            why = Counter(left.kind for left in self.left if Path(left.path).parent == folder)
            times = f", each {taken[0].repeats} times an epoch" if taken and taken[0].repeats > 1 else ""
            gone = [f"{count} left out ({reason})" for reason, count in why.items()]
            name = folder.name if folder == root else within(folder, root)
            yield f"{name}: " + ", ".join([f"{len(taken)} of {len(taken) + sum(why.values())} taken{times}", *gone])

    def _by_prompt(self) -> Iterator[str]:
        """Each prompt once, with all the places it comes from: a tagger writes one text beside each of two hundred photos."""
        places: dict[str, list[str]] = {}
        for photo in self.photos:
            places.setdefault(photo.prompt, []).append(photo.words or "common prompt")
        shown = sorted(places.items(), key=lambda item: -len(item[1]))
        for prompt, where in shown[:MOST]:
            yield f"{len(where)} x '{prompt}' ({listed(list(dict.fromkeys(where)), 3)})"
        if len(shown) > MOST:
            yield f"and {len(shown) - MOST} more prompts: python -m trainer photos {shlex.quote(self.folder)} shows all"

    def _by_bucket(self) -> Iterator[str]:
        sizes = Counter(photo.size_cut for photo in self.photos)
        if len(sizes) > 1:
            shapes = ", ".join(f"{width} x {height} ({count})" for (width, height), count in sorted(sizes.items()))
            most = min(self.photos, key=lambda photo: photo.kept)
            yield f"buckets: {shapes}; the crop of {most.name} loses most, {1 - most.kept:.0%}"


def by_kind(lefts: Iterable[Left]) -> dict[str, list[Left]]:
    """Those that are left out for one reason together, in the order in which the reasons were met."""
    found: dict[str, list[Left]] = {}
    for left in lefts:
        found.setdefault(left.kind, []).append(left)
    return found


def of_left(problem: str) -> bool:
    """Whether a sentence is about pictures that are left out, which the account says of each."""
    return " is left out: " in problem or " pictures are left out: " in problem


def within(path: Path, root: Path) -> str:
    """A path as seen from the folder that was named; one of several folders may lie elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _prompt_words(photos: tuple[Photo, ...]) -> str:
    counts = Counter(photo.prompt for photo in photos)
    prompt, count = counts.most_common(1)[0]
    if count == len(photos):
        return f"prompt '{prompt}' for " + ("it" if count == 1 else "all")
    if count == 1:
        return f"{len(counts)} prompts, one a photo, such as '{prompt}'"
    return f"{len(counts)} prompts, '{prompt}' for {count}"


def names(photos: list[Photo]) -> str:
    return listed([photo.name for photo in photos])
