"""What another start will read stands whole under its name, or not at all.

A program that is killed between opening a file and closing it leaves half of it, and one that loses power after closing
it may leave zeros. So a file is written beside its place, flushed to the disk and renamed, and the folder that now names
it is flushed too. A rename also never writes through a link that somebody put in the file's place.

    with whole(run / "config.toml") as part:
        part.write_text(text)

`whole_folder` does the same with a folder. What stood there before is set aside first and deleted last, so at every
moment one of the two is there; `tidy` finishes or removes what a killed program left behind. A part is locked by
whoever writes it, so that one program never tidies away what another is still writing.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LEFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?P<kind>part|aside|gone)")
# as versions before this module called them
OLD = re.compile(
    r"\.step-\d{6,}\.partial|\.[\w.-]+\.unfinished|\.manifest\.json\.\d+|[0-9a-f]{32}\.\d+\.part"
    r"|\.\d{5}-[0-9a-f]{12}(-\d+)?\.png\.part|report\.html\.part"
)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name to write a file under; when the block ends well it is flushed and becomes `path`, else it is removed."""
    part = _beside(path, "part")
    remove(part)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        with _claimed(part):
            yield part
            _flush(part)
            if path.is_dir() and not path.is_symlink():
                remove(path)
            os.replace(part, path)
        _flush(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends well all of it is flushed and it takes the place of `path`, which may
    be there already, as a folder or as a file."""
    part = _beside(path, "part")
    remove(part)
    try:
        part.mkdir()
        with _claimed(part):
            yield part
            for inside in sorted(part.rglob("*"), reverse=True):
                _flush(inside)
            _flush(part)
            place(part, path)
    except BaseException:
        if not os.path.lexists(path) and os.path.lexists(aside := _beside(path, "aside")):
            os.replace(aside, path)
        remove(part)
        raise


def place(part: Path, path: Path) -> None:
    """Give `part` the name `path`. What has that name already is set aside, and deleted once its successor stands."""
    aside = _beside(path, "aside")
    if os.path.lexists(path):
        remove(aside)
        os.replace(path, aside)
    os.replace(part, path)
    _flush(path.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; nothing happens where there is none. A folder gets another name first: half a
    folder under its own would be taken for a whole one."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not LEFT.fullmatch(path.name):
        gone = _beside(path, "gone")
        os.replace(path, gone)
        path = gone
    shutil.rmtree(path)


def tidy(folder: Path, complete: Callable[[Path], bool] = lambda part: False) -> list[str]:
    """Finish or remove what a killed program left in `folder`; the names of what was finished are returned.

    A part whose predecessor had been set aside was complete; of any other `complete(part)` decides. Nothing that a living
    program writes, and nothing with a name of another form, is touched. Two may tidy one folder at once, as runs with one
    cache do: what is gone when one of them comes to it, the other has done.
    """
    if not folder.is_dir():
        return []
    finished = []
    left = [path for path in folder.iterdir() if LEFT.fullmatch(path.name) or OLD.fullmatch(path.name)]
    for path in sorted(
        left, key=lambda path: not path.name.endswith(".aside")
    ):  # set aside first: their parts are whole
        try:
            finished += _tidied(path, complete)
        except FileNotFoundError:
            if os.path.lexists(path):
                raise
    return finished


def _tidied(path: Path, complete: Callable[[Path], bool]) -> list[str]:
    found = LEFT.fullmatch(path.name)
    part = path.with_name(path.name.removesuffix("aside") + "part") if path.name.endswith(".aside") else path
    if _alive(part):
        return []
    finished = []
    if found is not None and not os.path.lexists(target := path.with_name(found["name"])):
        whole_one = part if part is not path and part.exists() else path
        if found["kind"] == "aside" or (found["kind"] == "part" and complete(path)):
            os.replace(whole_one, target)
            finished.append(target.name)
    remove(path)
    return finished


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


@contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """Locked until the block ends or the process does. Windows needs no lock: what is open there cannot be deleted."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(part, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _alive(part: Path) -> bool:
    """Whether a program is still writing `part`."""
    if sys.platform == "win32" or part.is_symlink():
        return False
    try:
        handle = os.open(part, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a file system without locks
    return True


def _flush(path: Path) -> None:
    """Onto the disk. Not every file system can flush a folder, and Windows never."""
    if path.is_symlink() or (sys.platform == "win32" and path.is_dir()):
        return
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
