"""Whole jobs as other programs: a model folder, photos, a command line, and what running it took.

Peers and presets are measured from outside, in a process of their own, so that every one begins with a clean card. The
card's memory is polled through nvidia-smi, which sees context and workspaces too; on a CPU it is the resident set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from . import work
from .harness import Options

PHOTOS, CLASS_IMAGES = 4, 8
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ran:
    """seconds: start to finish; peak_bytes: of the whole card (or the process tree's resident set on a CPU)."""

    seconds: float
    peak_bytes: int
    code: int
    tail: str


@dataclass(frozen=True)
class Material:
    """What a job needs on disk. model: a diffusers folder; single: one checkpoint file, where it was asked for."""

    folder: Path
    model: Path
    photos: Path
    classes: Path
    pixels: int


def material(options: Options, folder: Path) -> Material:
    """Write a model with random weights, photos of noise and class images into `folder`."""
    made = work.parts(options)
    pixels = work.side(options, made)
    model = folder / "model"
    made.family.pipeline(made).save_pretrained(model, safe_serialization=True)
    for name, count in (("photos", PHOTOS), ("classes", CLASS_IMAGES)):
        (folder / name).mkdir()
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 255, (pixels // 8, pixels // 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((pixels, pixels)).save(folder / name / f"{index}.png")
    return Material(folder, model, folder / "photos", folder / "classes", pixels)


def workplace() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="snugbooth-bench-")


def ours(words: Sequence[object]) -> list[str]:
    """Our own trainer as a command line."""
    return [sys.executable, "-m", "trainer", *map(str, words)]


def run(command: Sequence[object], cwd: Path | None = None, timeout: float = 600) -> Ran:
    """Run a command to its end, watching memory; its output's end is kept for when it fails."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=cwd,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        watch = Watch(process.pid)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        seconds = time.perf_counter() - began
        peak = watch.stop()
        output.seek(0)
        return Ran(seconds, peak, code, output.read()[-2000:])


class Watch:
    """Polls memory every 50 ms until stopped."""

    def __init__(self, pid: int):
        self.pid, self.peak, self.done = pid, 0, threading.Event()
        self.smi = shutil.which("nvidia-smi")
        self.thread = threading.Thread(target=self._poll, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        self.done.set()
        self.thread.join()
        return self.peak

    def _poll(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, self._card() if self.smi else self._resident())

    def _card(self) -> int:
        said = subprocess.run(
            [self.smi, "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(said.stdout.splitlines()[0]) * 2**20

    def _resident(self) -> int:
        try:
            process = psutil.Process(self.pid)
            return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
        except psutil.NoSuchProcess:
            return 0
