"""What the machine is doing: card memory (allocated, peak, reserved), host memory, load and temperature.

"allocated" is what live tensors take from torch's allocator, "reserved" what the allocator took from the driver; neither
includes the CUDA context. Load and temperature come from NVML where it is installed, read at most twice a second.

What a process has of a card with everything, context and libraries included, is the driver's to say (`own_bytes`): what is free
falls with what any program takes. It says so on Linux; not under Windows, not for a slice of a card, and not inside a container,
whose processes have other numbers outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import torch

SECONDS = 5.0  # a driver that does not answer by then is not waited for


@dataclass
class Vitals:
    device: torch.device
    _process: psutil.Process = field(default_factory=psutil.Process)
    _nvml: tuple[float, float] = (float("nan"), float("nan"))
    _nvml_time: float = 0.0

    def begin_phase(self) -> None:
        """Forget the peak, so that the next one belongs to the phase that starts here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> dict[str, float]:
        """Fields of events.Step: vram_bytes, vram_peak_bytes, vram_reserved_bytes, ram_bytes, gpu_load, gpu_celsius."""
        on_card = self.device.type == "cuda"
        load, celsius = self._load_and_heat() if on_card else (float("nan"), float("nan"))
        return {
            "vram_bytes": torch.cuda.memory_allocated(self.device) if on_card else 0,
            "vram_peak_bytes": self.peak(),
            "vram_reserved_bytes": torch.cuda.memory_reserved(self.device) if on_card else 0,
            "ram_bytes": self.ram(),
            "gpu_load": load,
            "gpu_celsius": celsius,
        }

    def mark(self) -> float | torch.cuda.Event:
        """A moment: now, and on a card when everything queued so far is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, begun: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
        """Between two marks, once the second has passed."""
        if isinstance(begun, (int, float)) or isinstance(ended, (int, float)):
            assert isinstance(begun, (int, float)) and isinstance(ended, (int, float)), "marks of two kinds"
            return ended - begun
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def ram(self) -> int:
        return self._process.memory_info().rss

    def _load_and_heat(self) -> tuple[float, float]:
        if time.monotonic() - self._nvml_time > 0.5:
            self._nvml_time = time.monotonic()
            try:
                self._nvml = torch.cuda.utilization(self.device) / 100, float(torch.cuda.temperature(self.device))
            except _refusals():  # a slice of a card, or a virtual one, does not say: both stay unknown
                self._nvml_time = float("inf")
        return self._nvml


def _refusals() -> tuple[type[Exception], ...]:
    """What NVML raises, which is of a kind of its own, and what torch does where it is missing."""
    nvml = sys.modules.get("pynvml")
    return ImportError, RuntimeError, *([nvml.NVMLError] if nvml else [])


def own_bytes(device: torch.device) -> int | None:
    """Of this process on `device`, a card; None where the driver does not say, or says what cannot be."""
    with suppress(OSError, subprocess.SubprocessError, RuntimeError, AttributeError):
        card = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        query = ["nvidia-smi", "-i", card, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        found = read(said, os.getpid())
        return found if found is not None and found >= torch.cuda.memory_reserved(device) else None
    return None


def read(said: str, pid: int) -> int | None:
    """Bytes of process `pid` in lines of "pid, MiB"; None where it is not among them or has no number."""
    for line in said.splitlines():
        number, _, used = (word.strip() for word in line.partition(","))
        if number == str(pid) and used.isdigit():
            return int(used) * 2**20
    return None
