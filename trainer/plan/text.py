"""A plan for the eye: a table of phases, a bar of the largest one, the settings and the sentence that explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.plan import calibration
from trainer.plan.calibration import GIB

if TYPE_CHECKING:
    from trainer.plan.planner import Plan

WIDTH = 60
LETTERS = {"weights": "W", "corrections": "C", "moments": "M", "window": "S", "gradients": "G", "activations": "A", "inputs": "i",
           "standing": "W", "phase": "A", "context": "x", "workspaces": "w", "allocator": "a"}  # fmt: skip


def gib(size: int | float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f} GiB"


def table(plan: Plan) -> str:
    """Everything, for the terminal."""
    rows = [("phase", "VRAM", "RAM", "what the VRAM consists of (GiB)")]
    rows += [(p.name, gib(p.vram_bytes), gib(p.ram_bytes), parts(p.parts)) for p in plan.phases]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{plan.model}, {plan.mode}" + (f", preset {plan.preset}" if plan.preset else ""), ""]
    lines += [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]]) for row in rows
    ]
    lines += ["", bar(plan), "", plan.explanation]
    lines.append(
        "settings: "
        + ", ".join(f"{key.split('.')[-1]} {value}" for key, value in plan.settings.items() if value is not None)
    )
    lines.append(
        f"disk: {gib(plan.disk_bytes)} for cache, class images, checkpoints and exports; "
        f"tensors of the step alone: {gib(plan.step_tensor_bytes)}"
    )
    if plan.steps_per_second is not None:
        lines.append(
            f"speed: about {plan.steps_per_second:.2f} steps a second on a {plan.card} - "
            "an estimate from counted arithmetic and published rates, not measured"
        )
    unmeasured = [name for name, value in calibration.VALUES.items() if not value.measured]
    if plan.vram_peak_bytes and unmeasured:
        lines.append(
            "context, workspaces and the allocator's share are assumed, not measured (trainer/plan/calibration.py)"
        )
    lines += [f"warning: {text}" for text in plan.warnings]
    return "\n".join(lines)


def parts(sizes: dict[str, int]) -> str:
    """'weights 1.60 + moments 1.70 + ...', without what rounds to nothing."""
    return " + ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size >= 0.005 * GIB)


def bar(plan: Plan) -> str:
    """The largest phase against the budget, one letter for each kind of bytes."""
    worst = max(plan.phases, key=lambda phase: phase.vram_bytes or phase.ram_bytes)
    whole = max(plan.budget_bytes or 0, worst.vram_bytes or worst.ram_bytes)
    drawn, legend, done = "", [], 0
    for kind, size in worst.parts.items():
        done += size
        drawn += LETTERS.get(kind, "?") * (round(done * WIDTH / whole) - len(drawn))
        if LETTERS.get(kind, "?") in drawn:
            legend.append(f"{LETTERS.get(kind, '?')} {kind}")
    room = f"of {gib(plan.budget_bytes)}" if plan.budget_bytes else ""
    return f"{worst.name}: [{drawn.ljust(WIDTH, '.')}] {gib(worst.vram_bytes or worst.ram_bytes)} {room}\n  {', '.join(legend)}"
