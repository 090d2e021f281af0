"""The plan held against what happened, and corrected by what a probe measured.

`compare` puts plan and measurement side by side and turns a deviation into a line that can be pasted into a bug report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from trainer.errors import ConfigError
from trainer.events import Notice
from trainer.plan import calibration
from trainer.plan.calibration import gib
from trainer.plan.plan import Plan

TOLERANCE = 0.05  # of the planned bytes; below it a deviation is the allocator's business


def compare(plan: Plan, actual: Mapping[str, int]) -> tuple[str, list[Notice]]:
    """(table, notices) of planned against measured peaks. actual: phase -> bytes allocated by torch, 0 without a card."""
    lines, notices = ["phase            planned   workspaces     measured  difference"], []
    for phase in plan.phases:
        measured = actual.get(phase.name, 0)
        if not measured:
            continue
        planned = phase.vram_bytes - sum(phase.parts.get(kind, 0) for kind in plan.constants.overhead(0))
        apart, room = measured - planned, phase.parts.get("workspaces", 0)
        if (
            apart > 0
        ):  # libraries take their workspaces from torch's allocator: these are planned, under a name of their own
            apart = max(apart - room, 0)
        share = apart / max(planned, 1)
        said = f"{100 * share:+.1f} %" if apart else "none"
        lines.append(f"{phase.name:13s}{gib(planned):>11s}  + {gib(room):>9s}  {gib(measured):>11s}  {said:>10s}")
        if abs(share) > TOLERANCE and abs(apart) > 64 * calibration.MIB:
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
    """The plan corrected by doing: run what stands for each phase, and take its peak.

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
            tensors, extra = peaks[phase.name], plan.constants.overhead(peaks[phase.name])
            phase = replace(phase, vram_bytes=tensors + sum(extra.values()), parts={"measured": tensors} | extra)
        phases.append(phase)
    after = replace(plan, phases=tuple(phases), warnings=())
    of = f" of {gib(plan.budget_bytes)}" if plan.budget_bytes is not None else ""
    words = f"Measured by the probe: {gib(after.vram_peak_bytes)}{of}."
    if after.fits:
        return replace(after, explanation=words)
    warning = "What the probe measured does not fit: use a smaller --preset (or --vram_gb), which leaves more room."
    return replace(after, explanation=words, warnings=(warning,))
