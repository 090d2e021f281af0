"""One stage's beginning, progress and end as events, with its time and the card's peak measured in one place."""

from __future__ import annotations

import time

import torch

from trainer.events import PHASES, PhaseEnded, PhaseProgress, PhaseStarted
from trainer.machine.vitals import Vitals


class Phase:
    """`phase = Phase("save", device)`, then yield `phase.start(total)`, `phase.progress(done)`, `phase.end(detail)`."""

    def __init__(self, name: str, device: torch.device | str):
        assert name in PHASES, f"{name!r} is not one of {PHASES}"
        self.name, self.vitals, self.total = name, Vitals(torch.device(device)), 0

    def start(self, total: int = 0, detail: str = "") -> PhaseStarted:
        self.total, self.started = total, time.perf_counter()
        self.vitals.begin_phase()
        return PhaseStarted(self.name, total, detail)

    def progress(self, done: int, detail: str = "") -> PhaseProgress:
        return PhaseProgress(self.name, done, self.total, detail)

    def end(self, detail: str = "", folder: str = "") -> PhaseEnded:
        return PhaseEnded(
            self.name, time.perf_counter() - self.started, self.vitals.peak(), self.vitals.ram(), detail, folder
        )
