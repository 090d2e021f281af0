"""What ranks tell each other about weights and gradients: whole sums for everybody, or a slice of the state for each.

    all state everywhere    g <- all_reduce(g)                     the same update on every rank
    state shared            g_r <- reduce_scatter(g)               each rank updates its slice, then   w <- all_gather(w_r)

Both ways the numbers are the same to the bit. A team of one exchanges nothing: its slice is the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.machine.team import ALONE, Team
from trainer.policy import Policy
from trainer.step.gradients import Gradients
from trainer.step.ranks.share import Share
from trainer.step.residency import Holding


class Exchange:
    """Of one engine. `offers`: what others may ask this rank for, by name: unit -> its slice (see `whole`)."""

    def __init__(self, team: Team, policy: Policy):
        self.team, self.sharers = team, team if policy.shard == "state" else ALONE
        self.behind = min(
            1, self.sharers.size - 1
        )  # units whose weights may be on their way while the next one computes
        self.at_once = (
            policy.math == torch.float16 and not policy.two_passes
        )  # a unit's own norms say whether to skip it
        self.offers: dict[str, Callable[[int], Tensor]] = {}

    @property
    def keeps(self) -> bool:
        """Whether what follows the weights is kept here: by the first rank, or of a shared state its slice by each."""
        return self.team.leads or self.sharers.size > 1

    def share(self, n: int) -> Share:
        return Share.of(n, self.sharers.rank, self.sharers.size)

    def gradient(self, holding: Holding, grad: Gradients) -> Callable[[], None]:
        """Begin to add up a unit's gradient. When what comes back has been called, `grad` has this rank's slice of the sum."""
        if self.sharers.size == 1:
            return self.team.sum(grad.flat)
        mine = torch.empty(holding.share.count, dtype=grad.flat.dtype, device=grad.flat.device)
        wait = self.sharers.scatter(mine, grad.flat)

        def arrived() -> None:
            wait()
            grad.keep(mine)

        return arrived

    def weights(self, holding: Holding) -> Callable[[], None]:
        """Begin to spread a unit's new weights; they are everywhere when what comes back has been called."""
        row = holding.row()
        return self.sharers.spread(row, holding.share.of_row(row))

    def norms_of_unit(self, norms: Tensor) -> Tensor:
        """All ranks' norms of a unit's runs, where an update asks for them before backward is through; else as they are."""
        return self._summed(norms) if self.at_once else norms

    def norms_of_all(self, norms: list[Tensor]) -> list[Tensor]:
        """All ranks' norms of all runs, by one message; those of units have been asked for already where updates did."""
        return norms if self.at_once or not norms else [self._summed(torch.cat(norms))]

    def _summed(self, norms: Tensor) -> Tensor:
        """Each run is one rank's, and 0 with the others: no sum is rounded."""
        self.sharers.sum(norms)()
        return norms

    def whole(self, name: str, k: int) -> Tensor:
        """What all ranks' slices of unit k make together, on the first; in host memory. The others help meanwhile."""
        if self.sharers.size == 1:
            return self.offers[name](k)
        self.sharers.tell((name, k))
        return torch.cat(self.sharers.collect(self.offers[name](k)))

    def help(self, asked: tuple[str, int]) -> None:
        """Another rank's part in `whole`."""
        name, k = asked
        self.sharers.collect(self.offers[name](k))
