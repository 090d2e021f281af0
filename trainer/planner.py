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

from trainer import calibration, cards, solver
from trainer.budget import compare, enforce, probe, spill_watch
from trainer.config import Config, ConfigError
from trainer.events import Event, Notice, PlanReady
from trainer.models.describe import Facts
from trainer.phases_planned import PhasePlan, Phases
from trainer.plan_disk import disk_bytes
from trainer.plan_inputs import Machine, budget_bytes, facts_for, look, meta_parts, public_facts
from trainer.plan_text import gib, table
from trainer.policy import Policy

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
    found = _solve(config, ladder, budget, phases)
    planned = phases.all(found.policy, budget)
    while budget is not None and found.policy.resident_units and config.memory.resident_units is None:
        if max(phase.vram_bytes for phase in planned) <= budget:
            break  # else another phase than the step has less room for units that stay
        fewer = max(0, found.policy.resident_units - max(2, found.policy.resident_units // 4))
        found = replace(found, policy=replace(found.policy, resident_units=fewer))
        planned = phases.all(found.policy, budget)
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
    asked = _asked(config)
    better = _unbound(config, asked, result, machine, facts, phases) if asked and not result.fits else None
    result = replace(result, warnings=_warnings(config, asked, result, better, machine))
    kept = (
        better is not None and better.fits
    )  # somebody's own setting is what makes it not fit: it wins, with a warning
    return replace(result, refusal=None if result.fits or kept else refuse(result, better, config))


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


def refuse(made: Plan, better: solver.Found | None, config: Config) -> ConfigError:
    """Nothing fits: say what is largest, and the nearest plan that would fit. `better`: without the memory settings that
    somebody made."""
    worst = max(made.phases, key=lambda phase: phase.vram_bytes)
    size = made.vram_peak_bytes
    ways = [f"--vram_gb {size / calibration.GIB + 0.05:.1f} (this plan takes {gib(size)})"]
    if better is not None and better.step_bytes < size:
        ways.append(f"no {_flags(config, _asked(config))} (the step then takes {gib(better.step_bytes)})")
    if config.train.train_text_encoder:
        ways.append("no --train_text_encoder")
    if config.train.method == "full":
        ways.append("--method lora")
    if config.train.train_batch_size > 1:
        ways.append("--train_batch_size 1 with --gradient_accumulation_steps")
    ways.append("a lower --resolution")
    return ConfigError(f"{made.model} ({made.mode}) does not fit {gib(made.budget_bytes)}: "
                       f"the phase {worst.name!r} needs {gib(worst.vram_bytes)} at least.",
                       "Nearest plans that fit: " + ", or ".join(ways) + ".")  # fmt: skip


def _asked(config: Config) -> list[str]:
    """The memory settings that somebody made, by name."""
    axes = (*solver.AXES, "weights", "moments", "recompute_kernels")
    return [axis for axis in axes if getattr(config.memory, axis) != "auto"]


def _flags(config: Config, asked: list[str]) -> str:
    return " ".join(f"--{axis} {getattr(config.memory, axis)}" for axis in asked)


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
    if better is not None and better.fits:
        found.append(f"{_flags(config, asked)} is kept as asked, but makes the plan not fit: "
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
    made = draft(config, facts, machine)
    print(table(made))
    if made.refusal is not None:
        print(f"error: {made.refusal.what}\n  fix: {made.refusal.fix}")
    if json:
        print(json_lines.dumps(made.as_json()))
    return 0 if made.refusal is None else 2
