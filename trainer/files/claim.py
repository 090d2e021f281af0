"""One run at a time in a folder: the operating system holds a lock for as long as the process lives, however it ends.

Two runs that write one folder mix their checkpoints and logs without either noticing. Who holds it, and since when, lies
beside the lock, because a locked file cannot be read everywhere. Caches are shared on purpose and need none of this.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.errors import ConfigError
from trainer.files.regular import json_object
from trainer.files.whole import whole

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """`folder`, which is made where it is missing, is this process's until the block ends. Raises ConfigError where it is
    another's, with who that is."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as busy:
        raise ConfigError(
            f"another run is at work in {folder} ({_holder(folder)})",
            f"wait for it (python -m trainer watch {folder} shows it), end it, or choose another --output_dir",
        ) from busy
    try:
        with whole(folder / HOLDER) as part:
            holder = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            part.write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def is_claim(path: Path) -> bool:
    """Whether `path` is what a claim leaves in a folder, which is empty but for it."""
    return path.name in (LOCK, HOLDER)


def _holder(folder: Path) -> str:
    try:
        found = json_object(folder / HOLDER, "")
    except ConfigError:  # it is about to write who it is
        return "it has just begun"
    return f"process {found.get('process')} on {found.get('machine')}, since {found.get('since')}"
