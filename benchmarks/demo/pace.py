"""Pace: schedules that count minutes, not steps, so that training ends when the time is up whatever the machine.

    lr(p) = base * min(p / warmup, 1) * (1 - p)^0.7 ,   p = share of the time budget that is used

A run that is stopped and continued carries its used seconds in the checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Pace:
    minutes: float
    base_lr: float
    warmup: float = 0.02
    used_before: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def used_seconds(self) -> float:
        return self.used_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.used_seconds / (60 * self.minutes))

    @property
    def lr(self) -> float:
        p = self.progress
        return self.base_lr * min(1.0, (p + 1e-3) / self.warmup) * (1 - p) ** 0.7


def set_lr(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
