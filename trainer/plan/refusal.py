"""A plan that does not fit: what stands in the way, and the nearest plans that do fit, each of them simulated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainer import memory
from trainer.errors import ConfigError
from trainer.models import Facts
from trainer.plan import calibration, solver
from trainer.plan.calibration import gib
from trainer.plan.inputs import Machine
from trainer.plan.phases import Rehearsals
from trainer.plan.plan import Plan
from trainer.settings.config import Config


def refuse(made: Plan, better: solver.Found | None, config: Config, ways: list[str]) -> ConfigError:
    """Nothing fits: say what is largest, and the nearest plans that would fit. `better`: without the memory settings that
    somebody made; `ways`: other settings, each of them planned."""
    worst = max(made.phases, key=lambda phase: phase.vram_bytes)
    size = made.vram_peak_bytes
    found = [f"--vram_gb {math.ceil(10 * size / calibration.GIB) / 10:.1f} (this plan takes {gib(size)})"]
    if better is not None and better.step_bytes < size:
        found.append(f"no {flags(config, asked_for(config))} (the step then takes {gib(better.step_bytes)})")
    return ConfigError(f"{made.model} ({made.mode}) does not fit {gib(made.budget_bytes)}: "
                       f"the phase {worst.name!r} needs {gib(worst.vram_bytes)} at least.",
                       "Nearest plans that fit: " + ", or ".join([*found, *ways]) + ".")  # fmt: skip


def nearest(config: Config, made: Plan, machine: Machine, facts: Facts) -> Iterator[str]:
    """Other settings that fit the budget, as flags, what changes least first: each is planned at its smallest."""

    def smallest(**changes: Any) -> int:
        other = config.model_copy(deep=True)
        for key, value in changes.items():
            section, _, name = key.partition("__")
            setattr(getattr(other, section), name, value)
        rehearsals = Rehearsals(other, facts.family.build_meta(facts), machine.kind, machine.bf16, machine.constants)
        start = solver.base(other, machine.kind, machine.computes)
        _, policy = solver.rungs(other, start)[-1]
        phases, _ = rehearsals.all(policy, made.budget_bytes)
        return max(phase.vram_bytes for phase in phases)

    budget = made.budget_bytes
    assert budget is not None, "what has no budget fits"
    train, side = config.train, config.data.resolution or facts.resolution
    ways: list[list[tuple[str, dict[str, Any]]]] = []  # of each, the first that fits
    if (batch := train.train_batch_size) > 1:
        one = smallest(train__train_batch_size=1)
        each = max(made.vram_peak_bytes - one, 1) / (batch - 1)  # bytes grow along a straight line, near enough
        fewer = min(max(int((budget - one) / each) + 1, 1), batch - 1)
        sizes = dict.fromkeys((fewer, max(fewer - 1, 1), max(fewer * 7 // 8, 1)))  # pages are taken as a whole
        ways.append([(f"--train_batch_size {size}", {"train__train_batch_size": size}) for size in sizes])
    if train.train_text_encoder:
        ways.append([("no --train_text_encoder", {"train__train_text_encoder": False})])
    if train.method == "full":
        ways.append([("--method lora", {"train__method": "lora"})])
    if side > 256:  # below that there is little left to see
        lower = side * 3 // 4 // 64 * 64
        ways.append([(f"--resolution {lower}", {"data__resolution": lower})])
    for way in ways:
        sized = ((words, smallest(**changes)) for words, changes in way)
        fits = next(((words, size) for words, size in sized if size <= budget), None)
        if fits is not None:
            yield f"{fits[0]} (from {gib(fits[1])})"


def asked_for(config: Config) -> list[str]:
    """The memory settings that somebody made, by name."""
    return [name for name in memory.fields() if getattr(config.memory, name) not in ("auto", None)]


def flags(config: Config, asked: list[str]) -> str:
    return " ".join(f"--{axis} {getattr(config.memory, axis)}" for axis in asked)
