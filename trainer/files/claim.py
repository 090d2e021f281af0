"""One at a time in a folder: the operating system holds a lock for as long as the process lives, however it ends.

Two runs that write one run folder mix their checkpoints and logs without either noticing: the second is refused (`claimed`).
What runs share on purpose, class images and what else is computed once for a cache, is made by one of them while the others
wait (prior/turn.py). Who holds a claim, and since when, lies beside the lock, because a locked file cannot be read everywhere.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from trainer.errors import ConfigError
from trainer.files.regular import json_object
from trainer.files.whole import whole

LOCK, HOLDER = ".lock", ".lock.json"


class Claim:
    """On `folder`, or on the one thing in it that is called `name`: nobody's until it is taken, given back with the block.

    with Claim(folder) as claim:
        if holder := claim.take():
            ...  # is another's
    """

    def __init__(self, folder: Path, name: str = ""):
        before = f".{name}" if name else ""
        self.folder, self.holder = folder, folder / f"{before}{HOLDER}"
        self.lock = FileLock(folder / f"{before}{LOCK}", thread_local=False)

    def take(self) -> str:
        """Who else holds it; nothing where it is this process's now. Makes the folder where it is missing. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return self._holder()
        with whole(self.holder) as part:
            holder = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            part.write_text(json.dumps(holder), encoding="utf-8")
        return ""

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lock.is_locked:
            self.holder.unlink(missing_ok=True)
            self.lock.release()

    def _holder(self) -> str:
        try:
            found = json_object(self.holder, "")
        except ConfigError:  # it is about to write who it is
            return "it has just begun"
        return f"process {found.get('process')} on {found.get('machine')}, since {found.get('since')}"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """`folder`, which is made where it is missing, is this process's until the block ends. Raises ConfigError where it is
    another's, with who that is."""
    with Claim(folder) as claim:
        if holder := claim.take():
            raise ConfigError(
                f"another run is at work in {folder} ({holder})",
                f"wait for it (python -m trainer watch {folder} shows it), end it, or choose another --output_dir",
            )
        yield


def is_claim(path: Path) -> bool:
    """Whether `path` is what a claim leaves in a folder, which is empty but for it."""
    return path.name in (LOCK, HOLDER)
