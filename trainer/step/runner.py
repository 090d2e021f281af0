"""Running units, the same way in a step, for a picture and for a reading of the guard.

A unit reads values by name and writes values by name. Here they get the dtype the model computes with, the unit runs under
mixed precision where its weights ask for it, and what comes back is a tuple always. Whether a run keeps all of its graph,
a part of it or an empty one that backward fills again is decided by whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.memory import checkpointing
from trainer.policy import Policy
from trainer.step.mixed import autocast
from trainer.step.residency import Holding
from trainer.step.route import needed
from trainer.units import EXACT, Unit, still


class Runner:
    """`units` in the order of forward; their weights are on the card when they are run."""

    def __init__(self, units: Sequence[Unit], policy: Policy, device: torch.device):
        self.units, self.policy, self.device = units, policy, device
        self.dropouts = [m for unit in units for m in unit.module.modules() if isinstance(m, nn.Dropout)]
        self.draws = [checkpointing.draws(unit.module) for unit in units]

    def given(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values from outside, on the card, in the dtype the model computes with."""
        mixed = self.policy.weights == "fp32" and self.policy.compute != torch.float32
        dtype = torch.float32 if mixed else self.policy.math
        return {
            name: value.to(
                self.device,
                dtype if value.is_floating_point() and name not in EXACT else value.dtype,
                non_blocking=True,
            )
            for name, value in batch.items()
        }

    def run(self, k: int, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What unit k makes of `inputs`, without gradients."""
        with torch.no_grad():
            return self._call(self.units[k], *inputs)

    def differentiable(self, k: int, light: bool = False) -> Callable[..., tuple[Tensor, ...]]:
        """Unit k as backward wants it; `light`: its graph is kept empty and filled again as far as backward needs."""

        def plain(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self._call(self.units[k], *inputs)

        if k == len(self.units) - 1:  # backward follows at once
            return plain
        if self.policy.checkpointing == "selective":
            return checkpointing.selective(plain, self.draws[k])
        return checkpointing.again(plain, self.draws[k]) if light else plain

    def _call(self, unit: Unit, *inputs: Tensor) -> tuple[Tensor, ...]:
        with autocast(self.policy, self.device):
            outputs = unit.run(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def value(self, wanted: str, batch: Mapping[str, Tensor], holdings: Sequence[Holding]) -> Tensor:
        """`wanted` as computed from `batch` without gradients or dropout, each unit brought for its turn; units that are not
        needed for it (text encoders, when `text` is given) do not run."""
        known = self.given(batch)
        order = needed(self.units, set(known), {wanted})
        for position, k in enumerate(order):
            unit, holding = self.units[k], holdings[k]
            holding.use_weights()
            if position + 1 < len(order):
                holdings[order[position + 1]].bring()
            with still(self.dropouts):
                known.update(zip(unit.writes, self.run(k, [known[name] for name in unit.reads]), strict=True))
            holding.leave(changed=False)
            later = {name for j in order[position + 1 :] for name in self.units[j].reads} | {wanted}
            known = {name: value for name, value in known.items() if name in later}
        return known[wanted]
