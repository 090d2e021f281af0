"""What a measurement is made of: options, timed repeats, the peaks over them, and a row that may fail alone.

The device is waited for around each timed repeat, and nothing is timed before it ran `warmup` times. A row is a flat
dictionary; `guarded` turns what cards, libraries and full disks say into a column of it.
"""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from trainer.memory import allocator

DEMO = "demo"  # the built-in model, among the names of models


@dataclass(frozen=True)
class Options:
    """model: sd1, sd2, sdxl or demo; preset: of the suites that have one; tiny: seconds on two CPU cores, for tests and a first look."""

    model: str = "sd1"
    preset: str | None = None
    tiny: bool = False
    repeats: int = 5
    warmup: int = 2
    words: tuple[str, ...] = ()  # anything further a suite understands, such as a peer's checkout

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Timed:
    """Seconds of each repeat, and the peaks over all of them. Bytes of the card are 0 where there is none."""

    seconds: tuple[float, ...]
    allocated: int
    reserved: int
    device_used: int
    rss: int

    def row(self, images: int) -> dict:
        """The columns of a timing: median, spread (half of what lies between the fastest and the slowest repeat), images a
        second."""
        row = {
            "seconds": round(self.median, 6),
            "spread": round(self.spread, 6),
            "images_per_second": round(images / self.median, 4),
        }
        if self.device_used:
            row["peak_allocated_bytes"] = self.allocated
            row["peak_reserved_bytes"] = self.reserved
            row["device_used_bytes"] = self.device_used
        return row | {"peak_rss_bytes": self.rss}

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return (max(self.seconds) - min(self.seconds)) / 2


def timed(call: Callable[[], object], options: Options, recorded: bool = False) -> Timed:
    """Run `call` warmup + repeats times; the device is waited for around each timed one. recorded: the first runs record what
    the others replay, in memory that torch does not call allocated by then, so the peak is that of all of them."""
    device = options.device
    for _ in range(options.warmup):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        if not recorded:
            torch.cuda.reset_peak_memory_stats()
    forget_peak_rss()
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timed(tuple(seconds), *peaks(device))


def peaks(device: torch.device) -> tuple[int, int, int, int]:
    """(allocated, reserved, used on the whole device by everyone, resident set), bytes."""
    if device.type != "cuda":
        return 0, 0, 0, peak_rss()
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free, peak_rss()


def forget_peak_rss() -> None:
    """Let the kernel's high-water mark of this process begin anew, where there is one (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """The largest resident set since `forget_peak_rss`; today's where the kernel keeps no mark."""
    with suppress(OSError):
        marks = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(marks[0].split()[1]) * 1024
    return psutil.Process().memory_info().rss


def guarded(known: dict, measure: Callable[[], dict]) -> dict:
    """The row of `known` and what `measure` returns, or `failed`: out of memory in one row must not lose the others."""
    try:
        return known | measure()
    except (
        RuntimeError,
        ValueError,
        OSError,
        ImportError,
    ) as error:  # what cards, libraries, full disks and missing packages say; bugs of ours go through
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        traceback.print_exc()
    return known | {"failed": said}  # here the error is gone, and with it the frames that hold its tensors


def release() -> None:
    """Give back what the last row left in Python's and the allocator's hands, so that the next one begins clean."""
    gc.collect()
    allocator.release()
