"""The budget kept: the process limits itself to it, and a silent spill is noticed.

A driver on Windows and WSL lends host memory when the card is full instead of failing, and the run becomes ten times
slower without a word; `spill_watch` sees that from outside.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from statistics import median

import torch

from trainer.events import Event, Notice, Step
from trainer.plan.calibration import CONTEXT_BYTES, gib

CLIFF = 3.0  # times the median of earlier steps
FULL = 0.7  # of the card, in our hands: the presets' own limits are 0.77 to 0.95 of it, and the desktop has the rest


def enforce(budget_bytes: int | None, device: torch.device | str, context: float = CONTEXT_BYTES.amount) -> Notice:
    """Limit the process to its budget, so that a 12 GB preset on a larger card behaves as on a 12 GB card. `context`: bytes
    of it that are not torch's to give."""
    device = torch.device(device)
    if device.type != "cuda" or budget_bytes is None:
        return Notice(
            "No VRAM budget is enforced: the run is on a CPU." if device.type != "cuda" else "No VRAM budget was set."
        )
    total = torch.cuda.get_device_properties(device).total_memory
    share = fraction(budget_bytes, total, context)
    # accelerate says "cuda", and this one call of torch refuses a device without a number
    number = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(share, number)
    return Notice(f"The process limits itself to {gib(budget_bytes)} of {gib(total)} of VRAM.")


def fraction(budget_bytes: int, total_bytes: int, context: float = CONTEXT_BYTES.amount) -> float:
    """The share of the card that torch's allocator may take: the budget less the CUDA context, which is not its."""
    return min(1.0, max(0.0, (budget_bytes - context) / total_bytes))


class Spills:
    """Watches the events of steps for a driver that lends host memory, and says so once."""

    def __init__(self, device: torch.device):
        self.physical = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        self.seconds: list[float] = []

    def __call__(self, event: Event) -> list[Event]:
        if not self.physical or not isinstance(event, Step):
            return []
        self.seconds.append(event.seconds)
        notice = spill_watch(event.vram_reserved_bytes, self.physical, self.seconds)
        if notice is None:
            return []
        self.physical = 0
        return [notice]


def spill_watch(
    reserved_bytes: int, physical_bytes: int, seconds: Sequence[float], system: str | None = None
) -> Notice | None:
    """What points to the driver lending host memory: more reserved than there is, or steps that suddenly take a multiple.

    seconds: wall time of the steps so far, the newest last. system: where it happens; default this machine's.
    """
    system = system or _system()
    if physical_bytes and reserved_bytes > physical_bytes:
        return Notice(f"{gib(reserved_bytes)} are reserved on a card of {gib(physical_bytes)}: "
                      "the driver has spilled into shared memory, and steps crawl.",
                      SPILL_FIX, "warning")  # fmt: skip
    if system not in ("Windows", "WSL") or len(seconds) < 12:
        return None
    before, now = median(seconds[2:-3]), min(seconds[-3:])  # the first two steps warm up
    if before > 0 and now > CLIFF * before and reserved_bytes > FULL * physical_bytes:
        return Notice(f"Steps take {now:.2f} s instead of {before:.2f} s and the card is full: "
                      "the driver may have spilled into shared memory.",
                      SPILL_FIX, "warning")  # fmt: skip
    return None


SPILL_FIX = "Use a smaller --preset (or --vram_gb), close other programs, or set 'Prefer No Sysmem Fallback' in NVIDIA's control panel."


def _system() -> str:
    return "WSL" if "microsoft" in platform.release().lower() else platform.system()
