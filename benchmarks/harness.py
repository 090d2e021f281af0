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
from collections.abc import Callable, Iterable
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
    """Seconds of each repeat, and the peaks over all of them. Bytes are 0 where there is no card."""

    seconds: tuple[float, ...]
    allocated: int
    reserved: int
    device_used: int
    rss: int

    def row(self, images: int) -> dict:
        """The columns of a timing: median, spread (half of what lies between the fastest and the slowest repeat), images a
        second."""
        median = statistics.median(self.seconds)
        return {
            "seconds": round(median, 6),
            "spread": round((max(self.seconds) - min(self.seconds)) / 2, 6),
            "images_per_second": round(images / median, 4),
            "peak_allocated_bytes": self.allocated,
            "peak_reserved_bytes": self.reserved,
            "device_used_bytes": self.device_used,
            "rss_bytes": self.rss,
        }


def timed(call: Callable[[], object], options: Options) -> Timed:
    """Run `call` warmup + repeats times; the device is waited for around each timed one."""
    device = options.device
    for _ in range(options.warmup):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
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
    rss = psutil.Process().memory_info().rss
    if device.type != "cuda":
        return 0, 0, 0, rss
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free, rss


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
    for row in rows:
        kept.append(row)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{suite}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"suite": suite} | row | {"origin": where}) + "\n")
    if not quiet:
        console = Console()
        if not console.is_terminal:  # a file or a pipe: wide enough that no cell is cut
            console = Console(width=240)
        console.print(table(suite, kept, where))
    print(json.dumps({"suite": suite, "origin": where, "rows": kept}))
    return kept


def table(suite: str, rows: list[dict], where: dict) -> Table:
    """Rows as people read them: bytes in MiB, long numbers shortened; columns in order of appearance."""
    hardware = where["gpu"]["name"] if where["gpu"] else f"{where['cpu']}, {where['threads']} threads"
    made = Table(title=f"{suite} on {hardware}")
    columns = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, (list, dict)))
    )
    for name in columns:
        numeric = any(isinstance(row.get(name), (int, float)) for row in rows)
        made.add_column(name.replace("_bytes", "_MiB"), justify="right" if numeric else "left")
    for row in rows:
        made.add_row(*(shown(name, row.get(name)) for name in columns))
    return made


def shown(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 2**20:.1f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)
