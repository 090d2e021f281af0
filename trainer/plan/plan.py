"""The planner's answer as values: what every phase of a run takes, which policy and which way of drawing it follows.

Whoever decides makes one (planner.py), whoever runs obeys it, whoever shows or measures reads it; none of them needs the
other for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import ConfigError
from trainer.events import Event, Notice, PlanReady
from trainer.plan.calibration import ASSUMED, Constants
from trainer.policy import Drawing, Policy


@dataclass(frozen=True)
class PhasePlan:
    """vram_bytes: of the whole process, 0 without a card; parts: what they consist of, by kind; parked_bytes: optimizer
    state that makes room on the card by waiting in RAM."""

    name: str
    vram_bytes: int
    ram_bytes: int
    parts: dict[str, int] = field(default_factory=dict)
    parked_bytes: int = 0


@dataclass(frozen=True)
class Standing:
    """What an engine keeps between steps. card: all of it there, weights and anchor: of the model that learns and of the base
    model, among it; saved: what a checkpoint holds; trained: gradients that may wait on the card; average: a moving
    average in RAM; blocks: what a streamed unit moves, largest first."""

    card: int = 0
    weights: int = 0
    anchor: int = 0
    host: int = 0
    saved: int = 0
    trained: int = 0
    average: int = 0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Together:
    """What several cards cost each other. link: what joins them, in words; bytes: that a card sends in a step, and receives;
    seconds: of the link in a step; shown: what of them nothing hides."""

    cards: int
    link: str
    bytes: int
    seconds: float = 0.0
    shown: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The answer. `settings` are dotted keys of the configuration that the planner decided."""

    model: str
    mode: str
    preset: str
    budget_bytes: int | None
    policy: Policy
    drawing: Drawing
    settings: dict[str, Any]
    phases: tuple[PhasePlan, ...]
    step_tensor_bytes: int
    disk_bytes: int
    steps_per_second: float | None
    card: str
    explanation: str
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()  # what the numbers rest on, where somebody should know
    refusal: ConfigError | None = field(default=None, compare=False)
    clipped_steps_per_second: float | None = None  # with early updates, while every step is clipped
    together: Together | None = None  # where a plan is for several cards
    constants: Constants = ASSUMED  # what its sizes hold beside tensors, and its speed beside published rates

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
        for text in self.assumptions:
            yield Notice(text)
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
            "clipped_steps_per_second": self.clipped_steps_per_second,
            "settings": self.settings, "phases": phases,
            "refusal": None if self.refusal is None else {"what": self.refusal.what, "fix": self.refusal.fix},
        }  # fmt: skip
