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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from trainer.out import export

from . import work
from .timing import Options

PHOTOS, CLASS_IMAGES = 4, 8
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Ran:
    """seconds: start to finish; peak_bytes: on the card beyond what was used there before (on a CPU: the resident set of
    the process and its children)."""

    seconds: float
    peak_bytes: int
    code: int
    tail: str


@dataclass(frozen=True)
class Material:
    """What a job needs on disk. model: a diffusers folder."""

    folder: Path
    model: Path
    photos: Path
    classes: Path
    pixels: int


def material(options: Options, folder: Path, precision: str = "fp32") -> Material:
    """Write a model with random weights, photos of noise and class images into `folder`. The model is spelled as those on
    the hub are, which old releases of transformers read, too."""
    made = work.parts(options, dtype=export.PRECISIONS[precision])
    pixels = work.side(options, made)
    for _ in export.write(made, None, folder, ["diffusers"], precision):
        pass
    for name, count in (("photos", PHOTOS), ("classes", CLASS_IMAGES)):
        (folder / name).mkdir()
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 255, (pixels // 8, pixels // 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((pixels, pixels)).save(folder / name / f"{index}.png")
    return Material(folder, folder / "diffusers", folder / "photos", folder / "classes", pixels)


def workplace() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="snugbooth-bench-")


def ours(words: Sequence[object]) -> list[str]:
    """Our own trainer as a command line."""
    return [sys.executable, "-m", "trainer", *map(str, words)]


def environment(*, own: bool) -> dict[str, str]:
    """What a job is started in: without the hub; this checkout is on the path of a program of ours alone."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} if own else {}
    return os.environ | {"HF_HUB_OFFLINE": "1"} | path


def run(
    command: Sequence[object],
    cwd: Path | None = None,
    timeout: float = 1800,
    own: bool = True,
    together: bool = False,
) -> Ran:
    """Run a command to its end, watching memory; its output's end is kept for when it fails. own: a program of this
    checkout, which is then on its path; another trainer must not find our folders there. together: other jobs run on the
    same card meanwhile."""
    with tempfile.TemporaryFile("w+", errors="replace") as output, Watch(together) as watch:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=cwd,
            env=environment(own=own),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        watch.pid, said = process.pid, ""
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code, said = -1, f"\nstopped after {timeout:.0f} s"
        finally:  # also where this process is being ended: a job that goes on would sit on the card
            end(process)
        seconds = time.perf_counter() - began
        watch.stop()
        output.seek(0)
        return Ran(seconds, watch.peak, code, output.read()[-2000:] + said)


def end(process: subprocess.Popen) -> None:
    """End a process with everything it started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for each in (*children, process):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(children, timeout=1)  # killed is not yet gone; as a zombie it may stay longer


class Watch:
    """Follows memory until stopped: one nvidia-smi that prints every 50 ms, or the resident set of process `pid`, polled as
    often. What the card holds when the watch begins belongs to others and is taken off; `together`: others come and go
    meanwhile, so only what nvidia-smi says of process `pid` counts (it cannot say that under Windows)."""

    def __init__(self, together: bool = False):
        self.pid, self.peak, self.done = None, 0, threading.Event()
        smi = shutil.which("nvidia-smi")
        self.smi, self.before = None, 0
        if smi:
            card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
            what = "--query-compute-apps=pid,used_memory" if together else "--query-gpu=memory.used"
            query = ["-i", card, what, "--format=csv,noheader,nounits", "-lms", "50"]
            self.smi = subprocess.Popen([smi, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            if not together:
                self.before = self._card(self.smi.stdout.readline())
        following = self._follow_process if together else self._follow
        self.thread = threading.Thread(target=following if self.smi else self._poll, daemon=True)
        self.thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self.done.set()
        if self.smi:
            self.smi.kill()
            self.smi.wait()
        self.thread.join()

    def _follow(self) -> None:
        for line in self.smi.stdout:
            self.peak = max(self.peak, self._card(line) - self.before)

    def _follow_process(self) -> None:
        for line in self.smi.stdout:
            pid, _, used = line.partition(",")
            if pid.strip() == str(self.pid):
                self.peak = max(self.peak, self._card(used))

    @staticmethod
    def _card(line: str) -> int:
        return int(line) * 2**20 if line.strip().isdigit() else 0

    def _poll(self) -> None:
        while not self.done.wait(0.05):
            if self.pid is not None:
                self.peak = max(self.peak, self._resident(self.pid))

    @staticmethod
    def _resident(pid: int) -> int:
        try:
            process = psutil.Process(pid)
            return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
        except psutil.NoSuchProcess:
            return 0
