"""An exponential moving average of the master weights, in host memory, where it costs the card nothing.

    average <- average + (1 - d_k) (weights - average),   d_k = min(decay, (1 + k) / (10 + k))

The ramp of d_k lets the average follow the first steps, as diffusers' EMAModel and the TensorFlow original do.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class Average:
    """fp32 averages by name: of a unit's weights, or of the slice that this rank has of them."""

    def __init__(self, master: Iterable[tuple[str, Tensor]], decay: float):
        self.decay, self.steps = decay, 0
        self.values = {name: value.detach().float().cpu().clone() for name, value in master}

    def update(self, master: Iterable[tuple[str, Tensor]]) -> None:
        """Move towards `master`, the weights after an optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in master:
            self.values[name].lerp_(value.detach().float().cpu(), 1 - decay)

    def restore(self, values: Iterable[tuple[str, Tensor]], steps: int) -> None:
        self.steps = steps
        for (name, average), (theirs, value) in zip(self.values.items(), values, strict=True):
            assert name == theirs, "the average belongs to another model"
            average.copy_(value)
