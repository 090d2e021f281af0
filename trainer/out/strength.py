"""How much of what was learned comes along: w0 + s (w - w0), between the base model (0) and what was trained (1).

Drawing a subject and keeping everything else pull on the same weights, and where a run has gone too far for one of them, a
part of the way is often the better model: one run gives all of them, without another step. Of adapters B alone is scaled,
which comes to the same, since they add (alpha / rank) B A to w0. DoRA's magnitudes multiply, so it has no such path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from trainer.errors import ConfigError
from trainer.files.mapped import forget
from trainer.models import Parts, adapters, load_for
from trainer.settings.config import Model
from trainer.step.engine import Engine

Weights = Callable[[], Iterable[tuple[str, Tensor]]] | Mapping[str, Tensor]


def scaled(trained: Weights, strength: float, parts: Parts, model: Model) -> Weights:
    """What `engine.master` or a moving average holds (fp32, by full name), at `strength` from the weights of `model`.

    parts: the run's, asked only for their adapters. At strength 1 `trained` itself. Raises ConfigError for DoRA.
    """
    if strength == 1:
        return trained
    along = _way(strength, parts, model)
    return lambda: ((name, along(name, value)) for name, value in (trained() if callable(trained) else trained.items()))


def put(engine: Engine, strength: float, parts: Parts, model: Model) -> None:
    """The weights in `engine` at `strength`, a unit's worth of memory at a time."""
    if strength == 1:
        return
    along = _way(strength, parts, model)
    engine.flush()
    for holding in engine.holdings:
        holding.set_master({name: along(name, value) for name, value in holding.master()})


def _way(strength: float, parts: Parts, model: Model) -> Callable[[str, Tensor], Tensor]:
    if adapters.is_dora(parts):
        raise ConfigError(
            f"export.strength {strength:g} means nothing for DoRA: its magnitudes multiply the weights",
            "leave it at 1, or train with --method lora",
        )
    if adapters.injected(parts):
        return lambda name, value: value * strength if ".lora_B" in name else value
    base = {
        f"{part}.{name}": weight.detach()
        for part, module in load_for(model).modules().items()
        for name, weight in module.named_parameters()
    }

    def along(name: str, value: Tensor) -> Tensor:
        between = base[name].to(value.device, value.dtype).lerp(value, strength)
        forget(base[name])  # it lies in the model's file
        return between

    return along
