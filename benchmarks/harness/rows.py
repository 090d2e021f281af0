"""Rows and where they go: each with its origin, appended as soon as it exists, as a table for people and JSON for programs.

A row is a flat dictionary of what was measured; here it gets where and when (hardware, versions, commit) and is appended
to results/<suite>.jsonl, and so a suite that is cut short loses only its tail. The last line on stdout is one JSON
document with all rows.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "triton", "xformers", "peft")


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
    """The checkout's commit, with + where files differ from it; empty outside a checkout. BENCHMARKS_COMMIT goes before it,
    for a copy of a checkout on another machine."""
    given = os.environ.get("BENCHMARKS_COMMIT")
    return given or _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*words: str) -> str:
    here = Path(__file__).parent
    try:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
