"""What was learned of this machine's cards, kept in the user's own cache folder so that the next run need not learn it again.

A file's name is a digest of what its content is true of: the card, its driver, the versions of what computes on it, and what
was measured. Another driver is therefore another file, and nothing is ever out of date; a file that is damaged is as good as
none.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError
from trainer.files.regular import json_object
from trainer.files.store import key
from trainer.files.whole import whole

# Linux names the driver's release here; elsewhere its CUDA version is known
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Known:
    """of: what it is true of, in words; made: when, in seconds of the epoch; found: what was measured."""

    of: dict[str, str]
    made: float
    found: dict[str, Any]

    @property
    def date(self) -> str:
        return time.strftime("%d %B %Y", time.localtime(self.made)).lstrip("0")


def folder() -> Path:
    """Of this user, where the system keeps what can be made again."""
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "snugbooth" / "cards"


def versions(device: torch.device) -> dict[str, str]:
    """What of this machine decides how fast something is computed, and in what memory."""
    try:
        import triton
    except ImportError:
        triton = None
    card = device.type == "cuda"
    return {
        "card": torch.cuda.get_device_name(device) if card else "CPU",
        "driver": driver() if card else "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": getattr(triton, "__version__", ""),
    }


def driver() -> str:
    try:
        return DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return f"CUDA {getattr(torch._C, '_cuda_getDriverVersion', int)()}"  # a torch without CUDA has no such function


def read(of: Mapping[str, str]) -> Known | None:
    """What is known of exactly this."""
    found = _read(_file(of))
    return found if found is not None and found.of == dict(of) else None


def keep(of: Mapping[str, str], found: Mapping[str, Any]) -> Known:
    """Raises OSError where the folder cannot be written to."""
    known, path = Known(dict(of), time.time(), dict(found)), _file(of)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(json.dumps({"of": known.of, "made": known.made, "found": known.found}), encoding="utf-8")
    return known


def all_of(of: Mapping[str, str]) -> Iterator[Known]:
    """Everything known of a machine such as `of` says, the newest first."""
    found = [known for path in folder().glob("*.json") if (known := _read(path)) is not None]
    same = [known for known in found if of.items() <= known.of.items()]
    yield from sorted(same, key=lambda known: -known.made)


def _file(of: Mapping[str, str]) -> Path:
    return folder() / f"{key(**of)}.json"


def _read(path: Path) -> Known | None:
    try:
        said = json_object(path, "it is measured again")
        return Known(dict(said["of"]), float(said["made"]), dict(said["found"]))
    except (ConfigError, ValueError, TypeError, KeyError):
        return None
