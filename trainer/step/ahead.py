"""How far ahead of its turn a unit is brought: always the next one, and more of them while they are small.

The largest two neighbours decide what the card must have room for anyway. Elsewhere that room holds several units, so that
the bus does not idle while a unit with few weights computes for long: it already brings the large ones that come after.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.memory.clipping import Waiting
from trainer.step.residency import Holding


class Ahead:
    """One walk over units. `waiting`: whose updates are made on the way, and so need state and gradients too."""

    def __init__(self, order: Sequence[int], holdings: Sequence[Holding], waiting: Waiting | None = None):
        self.order, self.holdings, self.waiting = order, holdings, waiting
        self.sizes = [self._size(k) for k in order]
        self.room = max((sum(self.sizes[at : at + 2]) for at in range(len(order))), default=0)
        self.sent = 0  # units of the order that are there or on their way

    def _size(self, k: int) -> int:
        updated = self.waiting is not None and k in self.waiting.rates
        return self.holdings[k].away(state=updated) + (self.waiting.away(k) if updated else 0)

    def turn(self, at: int) -> None:
        """The unit at this place of the order has its turn: it comes if it has not yet, and others behind it."""
        while self.sent < len(self.order):
            if self.sent > at + 1 and sum(self.sizes[at : self.sent + 1]) > self.room:
                return
            k = self.order[self.sent]
            if self.waiting is not None and k in self.waiting.rates:
                self.holdings[k].bring(state=True)
                self.waiting.bring(k)
            else:
                self.holdings[k].bring()
            self.sent += 1
