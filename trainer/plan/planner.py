"""Know before you run: what every phase of a run takes on the card, in RAM and on disk, and which plan fits the budget.

A plan is a simulation: the stages' own functions run on tensors without memory (rehearse.py) and every storage is followed
(simulate.py). What no simulation can see is added from a labelled table (calibration.py), and the solver (solver.py)
walks from the fastest plan to the smallest until one fits. `plan(config, facts, device)` is pure: the machine is an argument.
"""

from __future__ import annotations

import json as json_lines
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trainer.errors import ConfigError
from trainer.events import Event, Notice, PlanReady
from trainer.models.describe import Facts
from trainer.plan import cards, solver
from trainer.plan.disk import disk_bytes
from trainer.plan.inputs import Machine, budget_bytes, facts_for, look, meta_parts, public_facts
from trainer.plan.measured import compare, enforce, probe, spill_watch
from trainer.plan.phases import PhasePlan, Phases, parks
from trainer.plan.refusal import asked_for, flags, nearest, refuse
from trainer.plan.text import gib, table
from trainer.policy import Drawing, Policy
from trainer.settings.config import Config

__all__ = ["Machine", "Plan", "compare", "draft", "enforce", "main", "plan", "probe", "public_facts", "spill_watch"]


@dataclass(frozen=True)
class Plan:
    """The answer. `settings` are dotted keys of the configuration that the planner decided."""

    model: str
    mode: str
    preset: str
    budget_bytes: int | None
    policy: Policy
    settings: dict[str, Any]
    phases: tuple[PhasePlan, ...]
    step_tensor_bytes: int
    disk_bytes: int
    steps_per_second: float | None
    card: str
    explanation: str
    warnings: tuple[str, ...] = ()
    refusal: ConfigError | None = field(default=None, compare=False)
    sample_batch: int = 4
    vae_tile: int | None = None
    vae_dtype: torch.dtype = torch.float32
    sample_dtype: torch.dtype | None = None

    @property
    def drawing(self) -> Drawing:
        """How the run's pictures are drawn."""
        return Drawing(self.sample_batch, self.vae_tile, self.vae_dtype, self.sample_dtype, parks(self.phases))

    @property
    def vram_peak_bytes(self) -> int:
        return max((phase.vram_bytes for phase in self.phases), default=0)

    @property
    def ram_peak_bytes(self) -> int:
        return max((phase.ram_bytes for phase in self.phases), default=0)

    @property
    def fits(self) -> bool:
        return self.budget_bytes is None or self.vram_peak_bytes <= self.budget_bytes

    def events(self) -> Iterator[Event]:
        """PlanReady, and warnings behind it."""
        largest = max(self.phases, key=lambda phase: phase.vram_bytes or phase.ram_bytes)
        sizes = {phase.name: phase.vram_bytes for phase in self.phases}
        yield PlanReady(self.explanation, self.budget_bytes or 0, sizes, dict(largest.parts))
        for text in self.warnings:
            yield Notice(text, level="warning")

    def as_json(self) -> dict[str, Any]:
        phases = [
            {"name": p.name, "vram_bytes": p.vram_bytes, "ram_bytes": p.ram_bytes, "parts": dict(p.parts)}
            for p in self.phases
        ]
        return {
            "model": self.model, "mode": self.mode, "preset": self.preset, "budget_bytes": self.budget_bytes, "fits": self.fits,
            "vram_peak_bytes": self.vram_peak_bytes, "ram_peak_bytes": self.ram_peak_bytes, "disk_bytes": self.disk_bytes,
            "step_tensor_bytes": self.step_tensor_bytes, "steps_per_second": self.steps_per_second,
            "settings": self.settings, "phases": phases,
        }  # fmt: skip


def plan(config: Config, facts: Facts, device: torch.device | str = "cuda", machine: Machine | None = None) -> Plan:
    """The fastest exact plan that fits. Raises ConfigError, with the nearest plan that fits, where there is none."""
    made = draft(config, facts, machine or look(config, torch.device(device)))
    if made.refusal is not None:
        raise made.refusal
    return made


def draft(config: Config, facts: Facts, machine: Machine, phases: Phases | None = None) -> Plan:
    """As `plan`, but what does not fit is returned, with its refusal, instead of raised. `phases`: rehearsals to share
    with other budgets of the same configuration."""
    phases = phases or Phases(config, meta_parts(config, facts), machine.kind)
    budget = budget_bytes(config, machine)
    start = solver.base(config, machine.kind, bf16=machine.card is None or machine.card.bf16)
    ladder = solver.rungs(config, start, facts)
    if machine.kind == "cpu":
        ladder, budget = ladder[:1], None
    found, planned = _place(config, ladder, budget, phases)
    work = phases.work(found.policy)
    card = machine.card if machine.kind == "cuda" else None
    result = Plan(
        model=config.model.name or phases.parts.source,
        mode=mode(config),
        preset=config.preset or "",
        budget_bytes=budget,
        policy=found.policy,
        settings=settings(config, found.policy, phases),
        phases=planned,
        step_tensor_bytes=work.card_peak,
        disk_bytes=disk_bytes(config, phases, phases.standing[found.policy].saved),
        steps_per_second=None if card is None else 1 / cards.seconds(work, card),
        card=card.name if card else "",
        explanation="",
        sample_batch=phases.sample_batch,
        vae_tile=phases.vae_tile,
        vae_dtype=phases.vae_dtype,
        sample_dtype=found.policy.math if machine.kind == "cuda" else None,
    )
    result = replace(result, explanation=explain(result, found, phases))
    asked = asked_for(config)
    better = _unbound(config, asked, result, machine, facts, phases) if asked and not result.fits else None
    result = replace(result, warnings=_warnings(config, asked, result, better, machine))
    kept = better is not None and better.fits  # somebody's own setting that does not fit wins, with a warning
    if result.fits or kept:
        return result
    return replace(result, refusal=refuse(result, better, config, list(nearest(config, result, machine, facts))))


def _place(
    config: Config, ladder: list[tuple[solver.Rung, Policy]], budget: int | None, phases: Phases
) -> tuple[solver.Found, tuple[PhasePlan, ...]]:
    """The first rung whose whole run fits: the solver looks at the step, and another phase may need more. Where none
    does, the one that needs least."""
    best: tuple[int, solver.Found] | None = None
    while ladder:
        found = _solve(config, ladder, budget, phases)
        planned = phases.all(found.policy, budget)
        while (peak := max(phase.vram_bytes for phase in planned)) > (budget or peak):
            if not found.policy.resident_units or config.memory.resident_units is not None:
                break  # else units that stay leave another phase too little room
            fewer = max(0, found.policy.resident_units - max(2, found.policy.resident_units // 4))
            found = replace(found, policy=replace(found.policy, resident_units=fewer))
            planned = phases.all(found.policy, budget)
        if best is None or peak < best[0]:
            best = peak, found
        if budget is None or peak <= budget or not found.fits:
            break
        words = [rung.words for rung, _ in ladder]
        ladder = ladder[words.index(found.words) + 1 :]
    assert best is not None
    return best[1], phases.all(best[1].policy, budget)


def _solve(
    config: Config, ladder: list[tuple[solver.Rung, Policy]], budget: int | None, phases: Phases
) -> solver.Found:
    fixed = config.memory.resident_units is not None
    return solver.solve(
        ladder, budget, phases.step_bytes, phases.residents, at_least=phases.at_least, fixed_residents=fixed
    )


def mode(config: Config) -> str:
    return config.train.method + ("+text" if config.train.train_text_encoder else "")


def settings(config: Config, policy: Policy, phases: Phases) -> dict[str, Any]:
    """Every memory setting as it will be, by dotted key."""
    names = ("weights", "moments", "checkpointing", "boundaries", "stream", "gradients", "attention")
    chosen: dict[str, Any] = {f"memory.{name}": getattr(policy, name) for name in names}
    chosen["memory.resident_units"] = policy.resident_units if policy.stream != "off" else None
    chosen["memory.recompute_kernels"] = "on" if policy.recompute_kernels else "off"
    chosen["memory.channels_last"] = "on" if policy.channels_last else "off"
    chosen["memory.vae_tile"] = phases.vae_tile
    chosen["prior.sample_batch_size"] = config.prior.sample_batch_size or phases.sample_batch
    chosen["sample.batch_size"] = config.sample.batch_size or phases.sample_batch
    chosen["compute"] = str(policy.math).removeprefix("torch.")
    return chosen


def explain(made: Plan, found: solver.Found, phases: Phases) -> str:
    """The choice in a sentence or two."""
    if made.budget_bytes is None and made.policy.compute == torch.float32 and not made.vram_peak_bytes:
        size = gib(made.ram_peak_bytes)
        return f"On the CPU: fp32 weights and moments, nothing recomputed; about {size} of RAM."
    of = f" of {gib(made.budget_bytes)}" if made.budget_bytes is not None else ""
    words = found.words
    if made.policy.stream != "off" and made.policy.resident_units:
        words += f" ({made.policy.resident_units} of {phases.unit_count} units stay)"
    text = f"{words[0].upper()}{words[1:]}; {gib(made.vram_peak_bytes)}{of}, RAM {gib(made.ram_peak_bytes)}."
    if not made.fits:
        return f"Does not fit: {text}"
    batch = phases.larger_batch(made.policy, made.budget_bytes)
    if batch > phases.config.train.train_batch_size:
        what = "pairs" if phases.shapes.rows > phases.shapes.instances else "photos"
        text += f" A batch of {batch} {what} would also fit."
    if made.policy.moments == "4bit":
        text += " 4-bit moments are approximate."
    return text


def _unbound(
    config: Config, asked: list[str], made: Plan, machine: Machine, facts: Facts, phases: Phases
) -> solver.Found:
    """What the solver would choose without the settings `asked` for."""
    free = config.model_copy(deep=True)
    for axis in asked:
        setattr(free.memory, axis, "auto")
    start = solver.base(free, machine.kind, bf16=machine.card is None or machine.card.bf16)
    return _solve(free, solver.rungs(free, start, facts), made.budget_bytes, phases)


def _warnings(
    config: Config, asked: list[str], made: Plan, better: solver.Found | None, machine: Machine
) -> tuple[str, ...]:
    found = []
    if machine.kind == "cuda" and made.budget_bytes is None:
        found.append("No card is here and no budget was named, so nothing limits this plan. "
                     "Say what to plan for: --preset 12gb, --vram_gb 10.5, or --card 'RTX 3060'.")  # fmt: skip
    if better is not None and better.fits:
        found.append(f"{flags(config, asked)} is kept as asked, but makes the plan not fit: "
                     f"{gib(made.vram_peak_bytes)} of {gib(made.budget_bytes)}. "
                     f"Without it {gib(better.step_bytes)} would do ({better.words}).")  # fmt: skip
    if machine.free_ram_bytes is not None and made.ram_peak_bytes > machine.free_ram_bytes:
        found.append(
            f"The plan needs {gib(made.ram_peak_bytes)} of RAM; {gib(machine.free_ram_bytes)} are free. "
            "Close other programs, or expect swapping."
        )
    return tuple(found)


def main(config: Config, json: bool = False) -> int:
    """`python -m trainer plan`: the table, the bar, the explanation; with `json` one line at the end."""
    config = config.model_copy(deep=True)
    facts = facts_for(config)
    machine = look(config, torch.device("cpu" if config.run.device == "cpu" else "cuda"))
    made = draft(config, facts, supposed(config, machine))
    print(table(made))
    if made.refusal is not None:
        print(f"error: {made.refusal.what}\n  fix: {made.refusal.fix}")
    if json:
        print(json_lines.dumps(made.as_json()))
    return 0 if made.refusal is None else 2


def supposed(config: Config, machine: Machine) -> Machine:
    """The card that a preset is usually meant for, where none is here and none was named: its speed is then estimated."""
    usual = cards.USUAL.get(config.preset or "")
    if machine.kind == "cuda" and machine.card is None and machine.free_vram_bytes is None and usual:
        return replace(machine, card=cards.find(usual))
    return machine
