"""What a denoiser looks like to the engine: an ordered list of units with explicit data flow.

A unit reads named values and writes named values; every name is written once (static single assignment), so a skip
connection is simply a value that a later unit reads too, and the time embedding a value that many units read.
Forward, recompute, backward, streaming and the planner's simulation are all loops over this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

EXACT = frozenset({"timestep", "time_ids"})  # given values that are positions or sizes: 16 bits would change them


@dataclass(frozen=True)
class Unit:
    """One schedulable piece of a model.

    name:   dotted and unique, e.g. "unet.down.0.resnet.1" (the first part names the trained model: unet, text, text_2)
    module: owns exactly the parameters this unit uses; no parameter belongs to two units
    reads:  names of the values passed to `run`, in order
    writes: names of the values `run` returns, in order (a single tensor for one name, else a tuple)
    run:    pure in its tensor arguments and the module's parameters; no randomness except through module dropout
    """

    name: str
    module: nn.Module
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[..., Tensor | tuple[Tensor, ...]]


def new(module: nn.Module) -> bool:
    """Whether what learns in `module` is new to the model, so that there is nothing to hold it to: a word's own rows."""
    return any(getattr(each, "NEW", False) for each in module.modules())


@contextmanager
def still(dropouts: Iterable[nn.Module]) -> Iterator[None]:
    """These switched off, for whoever only looks: dropout changes what is seen, and draws from training's random numbers."""
    active = [dropout for dropout in dropouts if dropout.training]
    for dropout in active:
        dropout.training = False
    try:
        yield
    finally:
        for dropout in active:
            dropout.training = True


def holder(modules: dict[str, nn.Module]) -> nn.Module:
    """A module whose parameter names are the full dotted names of the given modules inside their model."""
    root = nn.Module()
    for path, module in modules.items():
        *parents, last = path.split(".")
        place: nn.Module = root
        for name in parents:
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.add_module(last, module)
    return root


def check(units: list[Unit], given: set[str]) -> None:
    """Assert that `units` is a valid schedule when the values named in `given` are supplied from outside."""
    known, owners = set(given), {}
    for unit in units:
        missing = [name for name in unit.reads if name not in known]
        assert not missing, f"{unit.name} reads {missing} before they are written"
        for name in unit.writes:
            assert name not in known, f"{unit.name} writes {name!r} a second time"
            known.add(name)
        for parameter in unit.module.parameters():
            owner = owners.setdefault(id(parameter), unit.name)
            assert owner == unit.name, f"a parameter belongs to both {owner} and {unit.name}"
