"""The weights and state of all units as others see them between steps: a moving average, a checkpoint, a sampler.

What they are shown does not depend on where it lives, so that a run may resume on another card with another residency.
The formats it is stored in do belong to it: a checkpoint of 8-bit moments continues with 8-bit moments. Updates that wait
(Engine.flush) have been made before anything here is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from trainer.errors import ConfigError
from trainer.step.residency import Holding
from trainer.units import Unit

COUNTERS = ("engine.", "optimizer.")  # how names begin that belong to no unit
LAYOUT = "engine.channels_last"


def stored(units: Sequence[Unit], holdings: Sequence[Holding]) -> dict[str, Tensor]:
    """Trained weights, corrections and moments by unit as they are stored (not copies)."""
    return {
        f"{unit.name}.{name}": tensor
        for unit, holding in zip(units, holdings, strict=True)
        if holding.n
        for name, tensor in holding.at_home().tensors.items()
    }


def restore(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Fill `mine`, a whole state, from `theirs`, a checkpoint's. Raises ConfigError where its formats are not this run's."""
    ours, found = ({name for name in state if not name.startswith(COUNTERS)} for state in (mine, theirs))
    wrong = sorted(ours ^ found)
    wrong += [n for n in ours & found if (mine[n].shape, mine[n].dtype) != (theirs[n].shape, theirs[n].dtype)]
    if bool(theirs[LAYOUT]) != bool(mine[LAYOUT]):
        wrong.append("memory.channels_last")
    if wrong:
        raise ConfigError(
            f"The checkpoint was written with other settings of [memory] or [train]: {wrong[0]} differs.",
            "Resume with weights, moments, channels_last, mixed_precision, method and train_text_encoder as in its run's config.toml.",
        )
    for name in ours:
        mine[name].copy_(theirs[name])


def counted(holdings: Sequence[Holding], shelves: Iterable[Mapping[object, Tensor]]) -> dict[str, int]:
    """Bytes of weights and state on the card, and of everything in host memory; `shelves`: what else lies there."""
    on_card = {"weights": 0, "state": 0}
    anchors = [holding.anchor for holding in holdings if holding.anchor is not None]
    on_card |= {"anchor": sum(each.nbytes for each in anchors if each.stays)} if anchors else {}
    host = sum(tensor.nbytes for shelf in shelves for tensor in shelf.values())
    for holding in holdings:
        for kind, block in (("weights", holding.weights), ("state", holding.state)):
            if block.resident:
                on_card[kind] += block.home.nbytes
            else:
                host += block.home.nbytes
    desks = {id(each.desk): each.desk for each in anchors if each.desk is not None}
    host += sum(side.nbytes for desk in desks.values() for side in desk.sides)
    return on_card | {"host": host}


@contextmanager
def parked(holdings: Sequence[Holding]) -> Iterator[None]:
    """Optimizer state in host memory for the length of the block, so that sampling has the card to itself."""
    for holding in holdings:
        holding.park()
    try:
        yield
    finally:
        for holding in holdings:
            holding.unpark()
