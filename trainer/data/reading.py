"""One folder read picture by picture: what is taken, with which words and how often, and why the rest is not.

Each picture is decoded once, completely. What decides is asked in this order: whether it can be read, whether it was taken
already (the same bytes, or the same picture in another format, with the same words), whether it is large enough and shows
anything, and whether its mask has anything in the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from PIL import Image

from trainer.data import crops, folders, looks
from trainer.data.account import Left, Photo, PhotoSet, by_kind, counted
from trainer.data.crops import Size, View, kept_share
from trainer.data.folders import Place, candidates, fold, meant_as_repeats
from trainer.data.pictures import NEEDS, Picture, Unreadable, read
from trainer.data.words import TABLES, Table, Words, elsewhere, listed
from trainer.errors import ConfigError
from trainer.files.shown import is_text, shown

MUCH = 0.2  # a bucket's crop that loses more than this is named
FEW = 3  # pictures with one fault are named one by one
OUTSIDE = "its mask lies outside the crop"
SQUARE_MUCH = 0.5  # a square takes a third of every ordinary photo


@dataclass(frozen=True)
class Wanted:
    """How a folder is to be read.

    prompt, words: of pictures without words of their own, and where it comes from; typed: it counts before folders' names
    views:         a picture's crops, by size and digest
    places:        which folders count: "auto", "loose", "numbered", "all", "class"
    subject:       photos of the subject, of which one without any is no run, blurred ones and bursts are named, and class
                   images of ours are left out; of two hundred class images only black and blank ones are worth a word
    """

    prompt: str
    resolution: int
    views: Callable[[Size, str], list[View]]
    words: str = ""
    typed: bool = False
    captions: bool = True
    masks: bool = False
    places: str = "auto"
    flag: str = "the folder"
    subject: bool = True
    replace_in: Callable[[str], str] = field(default=lambda caption: caption)


def read_folder(folder: Path, wanted: Wanted) -> PhotoSet:
    """The account of `folder`. Raises ConfigError where there is no folder, no usable picture, or more than one meaning."""
    if not folder.exists():
        raise ConfigError(
            f"{wanted.flag} {folder} does not exist",
            folders.near(folder) or "check the spelling, or put 3 to 6 photos of the subject there",
        )
    if not folder.is_dir():
        raise ConfigError(f"{wanted.flag} {folder} is a file", f"name its folder: {folder.parent}")
    found = folders.find(folder, wanted.places, wanted.flag)
    reader = _Reader(folder, wanted)
    for place in found.places:
        reader.read(place)
    for sub, _, why in found.left:
        reader.left += [Left(str(path), why) for path in candidates(sub)]
    reader.of_one_package()
    if not reader.photos and wanted.subject:
        raise _empty(folder, wanted.flag, reader)
    reader.finish(found)
    return PhotoSet(tuple(reader.photos), reader.ignored, tuple(reader.problems), (), str(folder), tuple(reader.left))


class _Reader:
    """Goes through the pictures of one folder, place by place, and keeps the account."""

    def __init__(self, root: Path, wanted: Wanted):
        self.root, self.wanted = root, wanted
        self.photos: list[Photo] = []
        self.looks: list[looks.Look] = []
        self.left: list[Left] = []
        self.problems: list[str] = []
        self.names: dict[str, str] = {}  # digest -> name of the first picture with it
        self.again: dict[str, str] = {}  # a picture that is there with other words -> that one
        self.refused: list[Left] = []  # those in folders that count
        self.ignored = 0
        self.pictures: list[Path] = []
        self.unread: list[Path] = []  # files that a person may take for pictures
        self.digests: dict[tuple[str, str], str] = {}  # (digest, prompt) -> name
        self.albums: dict[str, looks.Album] = {}  # prompt -> pictures with it
        self.tables = Table.all(root) if wanted.captions else []

    def read(self, place: Place) -> None:
        files = candidates(place.folder)
        self.pictures += files
        tables = self.tables if place.folder == self.root else [*self._tables(place.folder), *self.tables]
        words = Words(place.folder, files, tables) if self.wanted.captions else None
        masks = folders.masks(place.folder) if self.wanted.masks else {}
        self._count_others(place.folder, files, words, masks)
        for path in files:
            prompt, origin = self._words(path, place, words)
            try:
                _nameable(path)
                self._one(path, prompt, origin, place.repeats, masks)
            except Unreadable as error:
                self._leave(path, str(error))
        if words is not None:
            self.problems += words.problems()
            for table in tables:
                if table.folder != self.root:
                    self.problems += table.problems()

    def _tables(self, folder: Path) -> list[Table]:
        return Table.all(folder) if self.wanted.captions else []

    def _words(self, path: Path, place: Place, words: Words | None) -> tuple[str, str]:
        """(prompt, where it comes from): a caption, then what was typed, then a numbered folder's name."""
        caption, origin = words.of(path) if words is not None else ("", "")
        if caption:
            return self.wanted.replace_in(caption), origin
        if place.numbered and not self.wanted.typed:
            return place.words, f"the folder {place.folder.name}"
        return self.wanted.prompt, self.wanted.words

    def _one(self, path: Path, prompt: str, origin: str, repeats: int, masks: dict[str, Path]) -> None:
        """Take the picture, or leave it with the reason. Raises Unreadable where it cannot be decoded."""
        wanted, picture = self.wanted, read(path)
        if wanted.subject and folders.drawn_here(path, picture.digest):
            return self._leave(path, "it is a class image that this program drew; rename it to train on it")
        if (twin := self.digests.get((picture.digest, prompt))) is not None:
            return self._leave(path, f"the same picture as {twin}")
        if min(picture.size) < smallest_side(wanted.resolution):
            size = "{} x {}".format(*picture.size)
            return self._leave(path, f"{size} px is too small for {wanted.resolution} px")
        look = looks.look(picture.rgb)
        if look.blank:
            return self._leave(path, "it is one colour everywhere")
        if twin := self.albums.setdefault(prompt, looks.Album()).twin(look):
            return self._leave(path, f"the same picture as {twin}, saved again")
        views = wanted.views(picture.size, picture.digest)
        mask = self._mask(path, picture, masks, views) if wanted.masks else ""
        if mask is None:
            return self._leave(path, f"{OUTSIDE}: crop it by hand, or use --buckets")
        if (other := self.names.setdefault(picture.digest, path.name)) != path.name:
            self.again[path.name] = other
        self.digests[picture.digest, prompt] = path.name
        self.albums[prompt].add(path.name, look)
        self.looks.append(look)
        if picture.pages > 1 and wanted.subject:
            self.problems.append(f"{path.name} has {picture.pages} pages: the first is used; save the others as files")
        kept = kept_share(picture.size, crops.center(picture.size, views[0].size))
        self.photos.append(
            Photo(
                str(path), prompt, picture.size, picture.digest, mask, repeats, origin, views[0].size, kept, look.bits
            )
        )

    def _leave(self, path: Path, why: str) -> None:
        self.left.append(Left(str(path), why))
        self.refused.append(self.left[-1])

    def about_refused(self) -> list[str]:
        """Why pictures cannot be taken, one by one; of many with one fault all at once."""
        said = []
        for kind, lefts in by_kind(self.refused).items():
            if len(lefts) > FEW:
                said.append(
                    f"{len(lefts)} pictures are left out: {kind} ({listed([shown(left.name) for left in lefts])})"
                )
            else:
                said += [f"{shown(left.name)} is left out: {left.why}" for left in lefts]
        return said

    def _mask(self, path: Path, picture: Picture, masks: dict[str, Path], views: list[View]) -> str | None:
        """The path of name.mask.png if there is one, else "alpha" for a picture with transparency, else nothing; None
        where it shows the subject in no crop."""
        beside = masks.get(fold(path.stem))
        shape = picture.alpha if beside is None else self._mask_file(path, picture, beside)
        if shape is None or shape.getextrema()[1] == 0:
            return ""
        if not any(shape.crop(_whole_pixels(view)).getextrema()[1] for view in views):
            return None
        return "alpha" if beside is None else str(beside)

    def _mask_file(self, path: Path, picture: Picture, beside: Path) -> Image.Image | None:
        try:
            mask = read(beside).rgb.convert("L")
        except Unreadable as error:
            self.problems.append(f"{beside.name} is not used: {error}")
            return None
        if mask.size != picture.size:
            self.problems.append(f"{beside.name} is not used: its size differs from {path.name}'s")
            return None
        if mask.getextrema()[1] == 0:
            self.problems.append(f"{beside.name} is not used: it is black everywhere")
        return mask

    def _count_others(self, folder: Path, files: list[Path], words: Words | None, masks: dict[str, Path]) -> None:
        """Files that are neither pictures nor belong to one."""
        used = {*files, *(masks[stem] for stem in {fold(path.stem) for path in files} & set(masks))}
        if words is not None:
            used |= {file for found in words.beside.values() for file in found}
            used |= {folder / name for name in TABLES}
        others = [path for path in folder.iterdir() if not path.is_dir() and path not in used]
        self.ignored += len(others)
        self.unread += others

    def finish(self, found: folders.Found) -> None:
        """What can only be said of all of them."""
        self.problems = [*self.about_refused(), *self.problems]
        for table in self.tables:
            self.problems += table.problems()
        for sub, count, why in found.left:
            if self.wanted.places == "auto":
                self.problems.append(
                    f"{counted(count, 'picture')} in {sub.name} left out: {why} (--folders all takes them)"
                )
        below = self.wanted.places != "loose"
        if below:
            self._further_down()
        read = [place.folder for place in found.places]
        unread = [folders.others(self.unread), *(folders.unread_below(self.root, read) if below else ())]
        for said in filter(None, unread):
            self.problems.append(f"not read: {said}; save them as JPEG or PNG to train on them")
        self.problems += folders.overlooked(self.unread, self.wanted.masks)
        if self.wanted.captions and (names := elsewhere(self.unread, self.pictures)):
            self.problems.append(
                f"captions in {listed(names)} are not read: put them into name.txt, metadata.jsonl or metadata.csv"
            )
        self.problems += self._complaints() if self.wanted.subject else self._spoiled()

    def of_one_package(self) -> None:
        """ConfigError where most pictures only wait for a package: who is told after the run that one photo of seven was
        trained on has lost it. A HEIC that lies beside its own JPEG is no loss."""
        taken = {(Path(photo.path).parent, fold(Path(photo.path).stem)) for photo in self.photos}
        paths = {Path(left.path): left.why for left in self.refused if left.why.startswith(NEEDS)}
        waiting = [path for path in paths if (path.parent, fold(path.stem)) not in taken]
        if self.wanted.subject and len(waiting) > len(self.photos):
            raise ConfigError(
                f"{len(waiting)} of {len(waiting) + len(self.photos)} pictures in {self.root} are HEIC, as phones take "
                "them, and cannot be read",
                paths[waiting[0]],
            )

    def _further_down(self) -> None:
        """Pictures deeper than a folder's folders: named once, and each is in the account."""
        deep = folders.further_down(self.root)
        if deep:
            names = listed([sub.relative_to(self.root).as_posix() for sub in deep], FEW)
            pictures = counted(sum(deep.values()), "picture")
            self.problems.append(f"{pictures} further down left out ({names}): name their folder, or move them up")
        self.left += [Left(str(path), "too far down") for sub in deep for path in candidates(sub)]

    def _spoiled(self) -> Iterator[str]:
        """Pictures that a model without numbers, or without light, leaves behind."""
        bad = [photo.name for photo, look in zip(self.photos, self.looks, strict=True) if look.spoiled()]
        if bad:
            yield (
                f"{len(bad)} of {counted(len(self.photos), 'picture')} in {self.root} are nearly black or of one colour "
                f"({listed(bad)}): the class learns that; delete them"
            )

    def _complaints(self) -> Iterator[str]:
        """What is worth saying about pictures that are used all the same. What is wrong with many is said of all at once."""
        said: dict[str, list[tuple[str, str]]] = {}  # what a picture suffers from -> (its name, the sentence about it)
        for photo, look in zip(self.photos, self.looks, strict=True):
            for kind, sentence in self._about(photo, look):
                said.setdefault(kind, []).append((photo.name, sentence))
        for kind, pictures in said.items():
            if len(pictures) > FEW:
                yield f"{len(pictures)} of {len(self.photos)} photos {kind}: {listed([name for name, _ in pictures])}"
            else:
                yield from (sentence for _, sentence in pictures)
        if self.again:
            pairs = listed([f"{name} is {other}" for name, other in self.again.items()], FEW)
            yield f"{pairs}, again with other words: both are trained on; delete one unless that is meant"
        for group in looks.bursts(self.looks):
            alike = [name for index in group if (name := self.photos[index].name) not in self.again]
            if len(alike) > 1:
                why = "pose and background count as part of the subject; keep the best of them"
                yield f"{listed(alike)} look alike: {why}"

    def _about(self, photo: Photo, look: looks.Look) -> Iterator[tuple[str, str]]:
        """(what is wrong, said of several; the sentence about this picture)."""
        width, height = photo.size
        side, lost = min(photo.size_cut), 1 - photo.kept
        square = photo.size_cut == (self.wanted.resolution, self.wanted.resolution)
        if min(width, height) < side:
            sentence = f"{photo.name} is {width} x {height} px and will be enlarged to {side} px, which blurs it"
            yield "are smaller than what is trained and will be enlarged, which blurs them", sentence
        if lost > (SQUARE_MUCH if square else MUCH):
            cut = "square crop" if square else f"crop of {photo.size_cut[0]} x {photo.size_cut[1]} px"
            fix = "crop it by hand" + (", or use --buckets" if square and _fits_bucket(photo.size) else "")
            sentence = f"{photo.name} is {width} x {height} px: the {cut} keeps {photo.kept:.0%} of it; {fix}"
            yield (
                f"lose more than {SQUARE_MUCH if square else MUCH:.0%} to the crop; {fix.replace('it', 'them')}",
                sentence,
            )
        if complaint := look.complaint():
            does = complaint.removeprefix("is ")
            yield f"are {does}", f"{photo.name} {complaint}"


def _nameable(path: Path) -> None:
    if not is_text(str(path)):
        raise Unreadable("its name, or its folder's, is not UTF-8: rename it")


def smallest_side(resolution: int) -> float:
    """Pictures with a shorter side are left out: enlarged more than four times, they teach nothing but blur."""
    return resolution / 4


def _whole_pixels(view: View) -> tuple[int, int, int, int]:
    left, upper, right, lower = view.box
    return int(left), int(upper), int(right + 0.999), int(lower + 0.999)


def _fits_bucket(size: Size) -> bool:
    """Buckets are at most twice as long as wide: a longer picture loses there, too."""
    return max(size) <= 2 * min(size) / (1 - MUCH)


def _empty(folder: Path, flag: str, reader: _Reader) -> ConfigError:
    if reader.refused:
        small = all("too small for" in left.why for left in reader.refused)
        return ConfigError(
            f"no picture in {folder} can be used:\n  " + "\n  ".join([*reader.about_refused(), *reader.problems]),
            "add larger photos, or name a smaller --resolution" if small else "add photos that can be opened",
        )
    if said := folders.others(folder.iterdir()):
        return ConfigError(f"no photos in {folder} that can be read, but {said}", "save them as JPEG or PNG")
    if deeper := next((path for path in sorted(folder.glob("*/*")) if path.is_dir() and candidates(path)), None):
        return ConfigError(
            f"no photos in {folder}, but {counted(len(candidates(deeper)), 'picture')} further down in {deeper}",
            f"use {flag} {quote(str(deeper.parent if meant_as_repeats(deeper.name) else deeper))}",
        )
    there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    only = f", only {listed([shown(path.name) for path in there], FEW)}" if there else ""
    return ConfigError(
        "\n  ".join([f"no photos in {folder}{only}", *folders.overlooked(there, False)]),
        "put 3 to 6 photos of the subject there (heic, jpg, png, tif, webp ...)",
    )
