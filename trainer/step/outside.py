"""The weights and state of all units as others see them between steps: a moving average, a checkpoint, a sampler.

What they are shown does not depend on where it lives, so that a run may resume on another card with another residency.
The formats it is stored in do belong to it: a checkpoint of 8-bit moments continues with 8-bit moments. Updates that wait
(Engine.flush) have been made before anything here is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.files.asked import Asked, like
from trainer.step.ranks.exchange import Exchange
from trainer.step.residency import Holding
from trainer.units import Unit

COUNTERS = ("engine.", "optimizer.")  # how names begin that belong to no unit
LAYOUT = "engine.channels_last"


def stored(units: Sequence[Unit], holdings: Sequence[Holding], exchange: Exchange) -> Asked:
    """Trained weights, corrections and moments by unit as they are stored (not copies, but for what ranks put together)."""
    places = {
        f"{unit.name}.{name}": (k, name)
        for k, (unit, holding) in enumerate(zip(units, holdings, strict=True))
        if holding.n
        for name in holding.form
    }
    like = {}
    for name, (k, part) in places.items():
        shape, dtype = holdings[k].form[part]
        like[name] = torch.empty(shape, dtype=dtype, device="meta")
    return Asked(like, lambda name: _whole(holdings, exchange, *places[name]))


def slices(units: Sequence[Unit], holdings: Sequence[Holding]) -> Iterator[tuple[str, Tensor]]:
    """(unit, this rank's slice of its weights in fp32), for what follows the weights number by number."""
    for unit, holding in zip(units, holdings, strict=True):
        if holding.n:
            yield unit.name, holding.at_home().master()


def slices_of(
    units: Sequence[Unit], holdings: Sequence[Holding], values: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The same of fp32 `values` by parameter."""
    for unit, holding in zip(units, holdings, strict=True):
        if holding.n:
            yield unit.name, holding.share.of_row(holding.fp32(values, torch.device("cpu")))


def by_parameter(holdings: Sequence[Holding], whole: Callable[[int], Tensor]) -> Asked:
    """By parameter what ranks have slices of, unit by unit. `whole`: of a unit's row, in fp32."""
    places = {place.name: (k, place) for k, holding in enumerate(holdings) for place in holding.trained}
    like = {name: torch.empty(place.shape, dtype=torch.float32, device="meta") for name, (_, place) in places.items()}
    last: dict[int, Tensor] = {}

    def bring(name: str) -> Tensor:
        k, place = places[name]
        if k not in last:
            last.clear()
            last[k] = whole(k)
        return place.view(last[k]).contiguous()

    return Asked(like, bring)


def offers(holdings: Sequence[Holding]) -> dict[str, Callable[[int], Tensor]]:
    """What this rank has of a unit's state, by name."""
    names = {name for holding in holdings for name in holding.state_names}
    return {name: lambda k, name=name: holdings[k].at_home().tensors[name] for name in names}


def _whole(holdings: Sequence[Holding], exchange: Exchange, k: int, part: str) -> Tensor:
    holding = holdings[k]
    if part == "weight":
        return holding.weight_views(holding.weights.read())["weight"][: holding.n]
    return exchange.whole(part, k)[: holding.form[part][0][0]]


def restore(
    mine: Mapping[str, Tensor], units: Sequence[Unit], holdings: Sequence[Holding], theirs: Mapping[str, Tensor]
) -> None:
    """Fill the holdings from `theirs`, a checkpoint's; `mine`: what this run would save. Raises ConfigError where the
    checkpoint's formats are not this run's."""
    ours, found = ({name for name in state if not name.startswith(COUNTERS)} for state in (like(mine), theirs))
    wrong = sorted(ours ^ found)
    wrong += [n for n in ours & found if not _alike(like(mine)[n], theirs[n])]
    if bool(theirs[LAYOUT]) != bool(mine[LAYOUT]):
        wrong.append("memory.channels_last")
    if wrong:
        raise ConfigError(
            f"The checkpoint was written with other settings of [memory] or [train]: {wrong[0]} differs.",
            "Resume with weights, moments, channels_last, mixed_precision, method and train_text_encoder as in its run's config.toml.",
        )
    for unit, holding in zip(units, holdings, strict=True):
        for part in holding.form if holding.n else ():
            holding.take(part, theirs[f"{unit.name}.{part}"])


def _alike(mine: Tensor, theirs: Tensor) -> bool:
    return (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


def counted(holdings: Sequence[Holding], shelves: Iterable[Mapping[object, Tensor]]) -> dict[str, int]:
    """Bytes of weights and state on the card, and of everything in host memory; `shelves`: what else lies there."""
    on_card = {"weights": 0, "state": 0}
    anchors = [holding.anchor for holding in holdings if holding.anchor is not None]
    on_card |= {"anchor": sum(each.nbytes for each in anchors if each.stays)} if anchors else {}
    lent = {h.weights.spare.data_ptr() for h in holdings if h.weights.spare is not None}
    shelved = [tensor for shelf in shelves for tensor in shelf.values()]
    host = sum(tensor.nbytes for tensor in shelved if tensor.data_ptr() not in lent)
    for holding in holdings:
        for kind, block in (("weights", holding.weights), ("state", holding.state)):
            if block.resident:
                on_card[kind] += block.home.nbytes
            else:
                host += block.home.nbytes
            host += 0 if block.spare is None else block.spare.nbytes
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
