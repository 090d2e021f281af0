"""The words beside the pictures of one folder: `name.txt`, `name.caption`, `metadata.jsonl`, `metadata.csv`.

Names are matched as people match them: without case, in any Unicode form, with or without the picture's suffix inside
("c.png.txt"), in tables also with "./" or the folders of another machine in front, or with another picture suffix. What an
exact name says counts before what a near one says, and a file or a row that belongs to no picture is named, because it was
meant for one; so are captions in a kind of file that is not read.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.data.folders import fold, listed
from trainer.data.pictures import PICTURE_SUFFIXES
from trainer.errors import ConfigError
from trainer.files import regular

CAPTION_SUFFIXES = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv")
NO_CAPTIONS = "add --no-captions"
TEXT_KEYS = ("text", "caption", "prompt")
OF_THE_FOLDER = frozenset("readme license licence notice changelog requirements".split())  # not meant as captions
NOT_READ = (".csv", ".tsv", ".jsonl", ".parquet")  # where others keep captions, under names of their own
MOST_JSON = 2**22  # bytes of a .json that is looked into
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Words:
    """Captions of `pictures`, which lie in `folder`; `tables` are those of this folder and of the one above it."""

    def __init__(self, folder: Path, pictures: Iterable[Path], tables: Iterable[Table]):
        self.folder, self.tables = folder, list(tables)
        by_base = defaultdict(list)
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in CAPTION_SUFFIXES and not file.name.startswith(".") and file.exists():
                by_base[fold(file.name[: -len(file.suffix)])].append(file)
                bare = without_picture_suffix(file.name[: -len(file.suffix)])
                if bare is not None:
                    by_base[fold(bare)].append(file)
        self.files = {file for files in by_base.values() for file in files}
        self.beside = {picture: self._beside(picture, by_base) for picture in pictures}

    @staticmethod
    def _beside(picture: Path, by_base: dict[str, list[Path]]) -> list[Path]:
        """Caption files of `picture`, the one that counts first."""

        def farness(file: Path) -> tuple[int, int, str]:
            base = file.name[: -len(file.suffix)]
            nearness = (picture.stem, picture.name).index(base) if base in (picture.stem, picture.name) else 2
            if nearness == 2 and fold(base) not in (fold(picture.stem), fold(picture.name)):
                nearness = 3  # the suffix of another picture inside: IMG_1.heic.txt beside IMG_1.jpg
            return nearness, CAPTION_SUFFIXES.index(file.suffix.lower()), file.name

        found = {*by_base.get(fold(picture.stem), ()), *by_base.get(fold(picture.name), ())}
        return sorted(found, key=farness)

    def of(self, picture: Path) -> tuple[str, str]:
        """(caption, where it stands); two empty strings where a picture has none."""
        said = [(" ".join(text_of(file, NO_CAPTIONS).split()), file.name) for file in self.beside[picture][:1]]
        said += [(table.take(picture), table.path.name) for table in self.tables]
        return next(((caption, where) for caption, where in said if caption), ("", ""))

    def problems(self) -> Iterator[str]:
        """What was meant for a picture and reached none. Ask when `of` has been called for all of them."""
        used = {files[0] for files in self.beside.values() if files}
        second = {file for files in self.beside.values() for file in files[1:]} - used
        stray = sorted(file.name for file in self.files - used - second if fold(file.stem) not in OF_THE_FOLDER)
        if stray:
            belongs = "belongs" if len(stray) == 1 else "belong"
            yield f"{listed(stray)} {belongs} to no picture in {self.folder.name}: captions are called like their picture"
        for picture, files in self.beside.items():
            if len(files) > 1 and files[1] in second:
                yield f"{picture.name} has captions in {listed([file.name for file in files])}: {files[0].name} counts"
            if files and not text_of(files[0], NO_CAPTIONS).split():
                yield f"{files[0].name} is empty: {picture.name} gets the common prompt"


class Table:
    """Captions by file name in one file, as Hugging Face's image folders have them: `file_name` and `text`."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.path = folder, folder / name
        self.rows: dict[str, str] = {}  # folded relative name -> caption
        self.spelled: dict[str, str] = {}
        self.twice: dict[str, None] = {}  # named by rows that do not say the same
        self.taken: set[str] = set()
        if self.path.exists():  # what is no file is refused: passed over, its captions would be missing without a word
            for file_name, caption in (_csv if name.endswith("csv") else _jsonl)(self.path):
                key = _key(file_name)
                caption = " ".join(caption.split())
                if self.rows.get(key, caption) != caption:
                    self.twice[file_name] = None
                self.rows[key], self.spelled[key] = caption, file_name

    def take(self, picture: Path) -> str:
        """The caption of `picture`; its row counts as used."""
        key = self._row_of(picture)
        self.taken |= {key}
        return self.rows.get(key, "")

    def _row_of(self, picture: Path) -> str:
        """The row that is meant: it has the name, or the name with another suffix, or is the only one that ends so, behind
        folders of the machine where the table was made."""
        name = _key(picture.relative_to(self.folder).as_posix())
        if name in self.rows:
            return name
        bare = without_picture_suffix(name, name)
        near = {row: without_picture_suffix(row, row) for row in self.rows}
        if exact := [row for row, other in near.items() if other == bare]:
            return exact[0]
        ends = [row for row, other in near.items() if other.endswith(f"/{bare}") and not self._another(row, picture)]
        return ends[0] if len(ends) == 1 else ""

    def _another(self, row: str, picture: Path) -> bool:
        """Whether a row names a file that is there and is not `picture`."""
        named = self.folder / self.spelled[row].replace("\\", "/")
        return named.is_file() and named.resolve() != picture.resolve()

    def problems(self) -> Iterator[str]:
        left = [spelled for key, spelled in self.spelled.items() if key not in self.taken]
        if left:
            rows = "1 row names" if len(left) == 1 else f"{len(left)} rows name"
            yield f"{self.path.name}: {rows} no picture here: {listed(left)}"
        if empty := [spelled for key, spelled in self.spelled.items() if key in self.taken and not self.rows[key]]:
            rows = "1 row has" if len(empty) == 1 else f"{len(empty)} rows have"
            yield f"{self.path.name}: {rows} no words for the picture ({listed(empty)}); {', '.join(TEXT_KEYS)} are read"
        if self.twice:
            yield f"{self.path.name} has several rows for {listed(list(self.twice))} that differ: the last counts"

    @classmethod
    def all(cls, folder: Path) -> list[Table]:
        return [cls(folder, name) for name in TABLES]


def _key(file_name: str) -> str:
    parts = [part for part in fold(file_name).replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def without_picture_suffix(name: str, otherwise: str | None = None) -> str | None:
    """`name` without ".png" and the like; `otherwise` where it has none."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES else otherwise


def elsewhere(files: Iterable[Path], pictures: Iterable[Path]) -> list[str]:
    """Names of files that hold captions and are not read: tables with names of their own, and .json with a caption for one
    of `pictures` (a phone's export has one with other things beside each)."""
    stems = {fold(picture.stem) for picture in pictures}
    return sorted(
        path.name
        for path in files
        if not path.name.startswith(".")
        and (path.suffix.lower() in NOT_READ or (path.suffix.lower() == ".json" and _captions_any(path, stems)))
    )


def _captions_any(path: Path, stems: set[str]) -> bool:
    """Whether a .json has words for a picture: it is called like it, has its name as a key, or is a list of rows."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON:
            return False
        found = json.loads(regular.data(path))
    except (OSError, ValueError, RecursionError):
        return False
    rows = found if isinstance(found, list) else []
    if isinstance(found, dict):
        rows = [row for name, row in found.items() if _stem(name) in stems]
        rows += [found] if _stem(path.stem) in stems else []
    return any(isinstance(row, dict) and any(isinstance(row.get(key), str) for key in TEXT_KEYS) for row in rows)


def _stem(name: str) -> str:
    """The last part of a path as it is typed, folded, without a picture's suffix."""
    last = _key(name).rpartition("/")[2]
    return without_picture_suffix(last, last) or ""


# --------------------------------------------------------------------------------------------- reading text of any make


def text_of(path: Path, otherwise: str = "remove the file") -> str:
    """The text of a file in UTF-8, or in UTF-16 or 32 with a mark in front or (16 bits) zeros that give it away. Raises
    ConfigError, whose fix ends with `otherwise`."""
    try:
        data = regular.data(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", f"mend its permissions, or {otherwise}"
        ) from error
    try:
        return data.decode(_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", f"save it as UTF-8, or {otherwise}") from error


def _encoding(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding
    zeros = data.count(0, 0, 4096)
    if not zeros:
        # nor is there one in UTF-16 that has neither blanks nor Latin letters: there, its alphabet gives it away
        high = {"utf-16-be": data[:4096:2], "utf-16-le": data[1:4096:2]}
        return next((encoding for encoding, half in high.items() if half and max(half) < ord("\t")), "utf-8")
    return "utf-16-be" if data[:4096:2].count(0) * 2 > zeros else "utf-16-le"


def _jsonl(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], next((row[key] for key in TEXT_KEYS if row.get(key)), "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _bad_row(path, number, "is not a JSON object with file_name and text") from error
        if not isinstance(name, str) or not isinstance(caption, str):
            raise _bad_row(path, number, "has a file_name or text that is no text")
        yield name, caption


def _csv(path: Path) -> Iterator[tuple[str, str]]:
    text = text_of(path)
    head = text.partition("\n")[0]
    between = max(",;\t", key=head.count)  # spreadsheets of half of Europe write semicolons
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    try:
        columns = {fold(column.strip()): column for column in rows.fieldnames or ()}
        key = next((columns[key] for key in TEXT_KEYS if key in columns), None)
        if "file_name" not in columns or key is None:
            raise _bad_row(path, 1, "names no columns file_name and text")
        for row in rows:
            if row[columns["file_name"]] is None or row[key] is None:
                raise _bad_row(path, rows.line_num, "has too few columns")
            yield row[columns["file_name"]], row[key]
    except csv.Error as error:
        raise _bad_row(path, rows.line_num, f"cannot be read ({error})") from error


def _bad_row(path: Path, number: int, what: str) -> ConfigError:
    return ConfigError(f"{path} line {number} {what}", "mend the line, or remove the file")
