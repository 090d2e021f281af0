"""The budget kept: the process limits itself to it, a silent spill is noticed, and the plan is held against what happened.

A driver on Windows and WSL lends host memory when the card is full instead of failing, and the run becomes ten times
slower without a word; `spill_watch` sees that from outside. `compare` prints plan and measurement side by side and
turns a deviation into a line that can be pasted into a bug report.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch

from trainer.errors import ConfigError
from trainer.events import Notice
from trainer.plan import calibration
from trainer.plan.calibration import gib
from trainer.plan.plan import Plan

TOLERANCE = 0.05  # of the planned bytes; below it a deviation is the allocator's business
CLIFF = 3.0  # times the median of earlier steps
FULL = 0.7  # of the card, in our hands: the presets' own limits are 0.77 to 0.95 of it, and the desktop has the rest


def enforce(budget_bytes: int | None, device: torch.device | str) -> Notice:
    """Limit the process to its budget, so that a 12 GB preset on a larger card behaves as on a 12 GB card."""
    device = torch.device(device)
    if device.type != "cuda" or budget_bytes is None:
        return Notice(
            "No VRAM budget is enforced: the run is on a CPU." if device.type != "cuda" else "No VRAM budget was set."
        )
    total = torch.cuda.get_device_properties(device).total_memory
    share = fraction(budget_bytes, total)
    # accelerate says "cuda", and this one call of torch refuses a device without a number
    number = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(share, number)
    return Notice(f"The process limits itself to {gib(budget_bytes)} of {gib(total)} of VRAM.")


def fraction(budget_bytes: int, total_bytes: int) -> float:
    """The share of the card that torch's allocator may take: the budget less the CUDA context, which is not its."""
    return min(1.0, max(0.0, (budget_bytes - calibration.CONTEXT_BYTES.amount) / total_bytes))


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


def compare(plan: Plan, actual: Mapping[str, int]) -> tuple[str, list[Notice]]:
    """(table, notices) of planned against measured peaks. actual: phase -> bytes allocated by torch, 0 without a card."""
    lines, notices = ["phase         planned     measured  difference"], []
    for phase in plan.phases:
        measured = actual.get(phase.name, 0)
        if not measured:
            continue
        planned = phase.vram_bytes - sum(phase.parts.get(kind, 0) for kind in calibration.overhead(0))
        share = (measured - planned) / max(planned, 1)
        lines.append(f"{phase.name:12s} {gib(planned):>9s} {gib(measured):>11s}  {100 * share:+9.1f} %")
        if abs(share) > TOLERANCE and abs(measured - planned) > 64 * calibration.MIB:
            notices.append(
                Notice(
                    f"The plan for {phase.name!r} is off by {100 * share:+.0f} %.",
                    f"Please report this line: {report_line(plan, phase.name, planned, measured)}",
                )
            )
    return ("\n".join(lines) if len(lines) > 1 else "Plan against actual: nothing was measured on a card."), notices


def report_line(plan: Plan, phase: str, planned: int, measured: int) -> str:
    """Everything a maintainer needs to repeat a wrong plan, in one line."""
    settings = " ".join(f"{key.split('.')[-1]}={value}" for key, value in plan.settings.items() if value is not None)
    numbers = f"planned={planned} measured={measured} torch={torch.__version__}"
    return f"[plan] model={plan.model} mode={plan.mode} phase={phase.replace(' ', '_')} {numbers} {settings}"


def probe(plan: Plan, device: torch.device | str, runs: Mapping[str, Callable[[], object]]) -> Plan:
    """The plan corrected by doing: run one step of the largest bucket, one sample and one save, and take their peaks.

    runs: phase -> what to do. A step for a probe passes update=False to the engine, so that nothing is learned from it.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise ConfigError("--probe measures a CUDA card, and this run is on the CPU.", "Leave --probe out.")
    peaks = {}
    for phase, run in runs.items():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        peaks[phase] = torch.cuda.max_memory_allocated(device)
    return corrected(plan, peaks)


def corrected(plan: Plan, peaks: Mapping[str, int]) -> Plan:
    """`plan` with measured peaks (bytes of live tensors, by phase) in place of simulated ones."""
    phases = []
    for phase in plan.phases:
        if phase.name in peaks:
            tensors, extra = peaks[phase.name], calibration.overhead(peaks[phase.name])
            phase = replace(phase, vram_bytes=tensors + sum(extra.values()), parts={"measured": tensors} | extra)
        phases.append(phase)
    after = replace(plan, phases=tuple(phases), warnings=())
    of = f" of {gib(plan.budget_bytes)}" if plan.budget_bytes is not None else ""
    words = f"Measured by the probe: {gib(after.vram_peak_bytes)}{of}."
    if after.fits:
        return replace(after, explanation=words)
    warning = "What the probe measured does not fit: use a smaller --preset (or --vram_gb), which leaves more room."
    return replace(after, explanation=words, warnings=(warning,))
