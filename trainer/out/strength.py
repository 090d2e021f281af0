"""How much of what was learned comes along: w0 + s (w - w0), between the base model (0) and what was trained (1).

Drawing a subject and keeping everything else pull on the same weights, and where a run has gone too far for one of them, a
part of the way is often the better model: one run gives all of them, without another step. Of adapters B alone is scaled,
which comes to the same, since they add (alpha / rank) B A to w0. DoRA's magnitudes multiply, so it has no such path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from trainer.files.mapped import forget
from trainer.models import Parts, adapters, load_for, word
from trainer.out.export import Weights, again
from trainer.settings import checks
from trainer.settings.config import Model
from trainer.step.engine import Engine


class Between:
    """From the weights of `model` to what a run learned; any number of places on it for one reading of the base model.

    parts: the run's, asked only for their adapters
    """

    def __init__(self, parts: Parts, model: Model):
        self.parts, self.model = parts, model

    def scaled(self, trained: Weights, strength: float) -> Weights:
        """What `engine.master` or a moving average holds (fp32, by full name), at `strength`. At 1 `trained` itself. Raises
        ConfigError for DoRA."""
        if strength == 1:
            return trained
        along, values = self._along(strength), again(trained)
        return lambda: ((name, along(name, value)) for name, value in values())

    def put(self, engine: Engine, strength: float) -> None:
        """What was trained lies in `engine`, and then its weights at `strength`: a unit's worth of memory at a time."""
        if strength == 1:
            return
        along = self._along(strength)
        engine.flush()
        for holding in engine.holdings:
            holding.set_master({name: along(name, value) for name, value in holding.master()})

    def _along(self, strength: float) -> Callable[[str, Tensor], Tensor]:
        checks.strength(strength, adapters.is_dora(self.parts))
        known = word.words(self.parts)
        lora = adapters.injected(self.parts)
        if lora and not known:
            return lambda name, value: value * strength if ".lora_B" in name else value
        base = self._base

        def along(name: str, value: Tensor) -> Tensor:
            if name in known:
                rows = base[f"{name.removesuffix('.rows')}.weight"][known[name]]
                return rows.to(value.device, value.dtype).lerp(value, strength)
            if lora:
                return value * strength if ".lora_B" in name else value
            between = base[name].to(value.device, value.dtype).lerp(value, strength)
            forget(base[name])  # it lies in the model's file
            return between

        return along

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": weight.detach()
            for part, module in load_for(self.model).modules().items()
            for name, weight in module.named_parameters()
        }
