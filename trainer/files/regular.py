"""Only regular files are opened: what lies in somebody's folder may be a pipe, a socket or a device.

Opening a pipe waits for whoever writes into it, for ever if need be, and a link to /dev/zero has no end. A name says
nothing about that, so the file is asked before it is opened and again while it is open, for it may change in between.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import ConfigError

TEXT_MIB = 8  # settings, prompts, lists of photos: the largest seen have a tenth of it
VALUES, DEPTH = (
    100_000,
    50,
)  # of what a settings file holds; aliases in YAML can make more of a few lines than fits in memory
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def opened(path: Path) -> BinaryIO:
    """The file at `path`, to read. Raises OSError where there is none, or something that is no file."""
    _must_be_file(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | AT_ONCE)
    try:
        _must_be_file(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def data(path: Path) -> bytes:
    """All bytes of the file at `path`."""
    with opened(path) as file:
        return file.read()


def text(path: Path, fix: str) -> str:
    """What a file for people says: settings, prompts. Raises ConfigError with `fix` for what is none, or has no end."""
    try:
        with opened(path) as file:
            found = file.read((TEXT_MIB << 20) + 1)
        if len(found) > TEXT_MIB << 20:
            raise ConfigError(f"{path} is larger than {TEXT_MIB} MiB: no file that a person wrote", fix)
        return found.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", fix) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: byte {error.start} is no UTF-8", fix) from error


def only_files(folder: Path, fix: str) -> None:
    """Refuse a folder that a library is about to read where something in it is neither file nor folder: libraries open
    whatever has the right name. A link that leads nowhere is no file for them either."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not path.exists():
            continue
        try:
            _must_be_file(path, os.stat(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", fix) from error


def parsed(path: Path, kind: str, fix: str, parse: Callable[[], Any]) -> Any:
    """What `parse` makes of the text of `path`: plain values, no more and no deeper than anybody writes.

    Parsers call themselves for each level, and Python ends that with an error of its own.
    """
    try:
        found = parse()
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid {kind}: it is nested too deep", fix) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {kind}: {error}", fix) from error
    count, level = 0, [found]
    for _ in range(DEPTH):
        level = [each for value in level for each in _inside(value)]
        count += len(level)
        if not level:
            return found
        if count > VALUES:
            raise ConfigError(f"{path} is not valid {kind}: it stands for more than {VALUES} values", fix)
    raise ConfigError(f"{path} is not valid {kind}: it is nested too deep", fix)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def json_object(path: Path, fix: str) -> dict[str, Any]:
    """The JSON object that `path` holds. Raises ConfigError with `fix` for everything else."""
    try:
        found = json.loads(data(path).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, nested a thousand deep
        raise ConfigError(f"{path} is damaged: it is not JSON", fix) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object", fix)
    return found


def _must_be_file(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))
