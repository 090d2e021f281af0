"""What every suite shares: options, timing, peaks, rows with their origin, a table for people and JSON for programs.

A row is a flat dictionary of what was measured; the harness adds where and when (hardware, versions, commit), appends it
to results/<suite>.jsonl as soon as it exists, and so a suite that is cut short loses only its tail. The last line on
stdout is one JSON document with all rows.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "triton", "xformers", "peft")


@dataclass(frozen=True)
class Options:
    """model: sd1, sd2 or sdxl; preset: of the suites that have one; tiny: seconds on two CPU cores, for tests and a first look."""

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


def timed(call: Callable[[], object], options: Options) -> Timed:
    """Run `call` warmup + repeats times; the device is waited for around each timed one."""
    device = options.device
    for _ in range(options.warmup):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
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
    ) as error:  # what cards, libraries and full disks say; bugs of ours go through
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        traceback.print_exc()
    return known | {"failed": said}  # here the error is gone, and with it the frames that hold its tensors


def origin() -> dict[str, object]:
    """Where and when a row was measured: hardware, versions, commit."""
    card = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        card = {"name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": card,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()} x{psutil.cpu_count()}"


def commit() -> str:
    """The checkout's commit, with + where files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + ("+" if dirty.strip() else "")


def run(suite: str, rows: Iterable[dict], *, folder: Path | None = None, quiet: bool = False) -> list[dict]:
    """Take rows as they come: append each to `folder`/<suite>.jsonl (None: nowhere), then print the table and the JSON line."""
    where, kept = origin(), []
    try:
        for row in rows:
            kept.append(row)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"{suite}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"suite": suite} | row | {"origin": where}) + "\n")
    finally:
        if kept:
            if not quiet:
                console = Console()
                if not console.is_terminal:  # a file or a pipe: wide enough that no cell is cut
                    console = Console(width=1000)
                console.print(table(suite, kept, where))
            print(json.dumps({"suite": suite, "origin": where, "rows": kept}), flush=True)
    return kept


def table(suite: str, rows: list[dict], where: dict) -> Table:
    """Rows as people read them: bytes in MiB, long numbers shortened; columns in order of appearance, and what is the same
    in all rows above them."""
    hardware = where["gpu"]["name"] if where["gpu"] else f"{where['cpu']}, {where['threads']} threads"
    columns = list(
        dict.fromkeys(
            name
            for row in rows
            for name, value in row.items()
            if value is not None and not isinstance(value, (list, dict))
        )
    )
    same = [
        name for name in columns
        if len(rows) > 1 and not name.endswith("_bytes") and len({row.get(name) for row in rows}) == 1
    ]  # fmt: skip
    also = ", ".join(f"{name.replace('_', ' ')} {shown(name, rows[0][name])}" for name in same)
    made = Table(title=f"{suite} on {hardware}" + (f"\n{also}" if also else ""))
    columns = [name for name in columns if name not in same]
    for name in columns:
        numeric = any(isinstance(row.get(name), (int, float)) for row in rows)
        made.add_column(name.replace("_bytes", "_MiB"), justify="right" if numeric else "left")
    for row in rows:
        made.add_row(*(shown(name, row.get(name)) for name in columns))
    return made


def shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name == "failed":  # the whole of it is in the JSON
        return str(value).splitlines()[-1].strip()[:100]
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        mib = value / 2**20
        return f"{mib:.1f}" if abs(mib) >= 1 or not mib else f"{mib:.2g}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, int) and abs(value) >= 1e4:
        return f"{value:,}"
    return str(value)
