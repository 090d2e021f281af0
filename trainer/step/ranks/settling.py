"""When a unit's update is made: as soon as its gradient is there, in a second pass, or before its next forward; and when it
is over, which with several ranks is when its new weights are everywhere.

In a pass over units the weights of one travel while the next is updated; before a forward, while the unit before it computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from trainer.memory.clipping import Waiting
from trainer.memory.stream import Traffic
from trainer.step.ahead import Ahead
from trainer.step.ranks.exchange import Exchange
from trainer.step.residency import Holding
from trainer.step.updates import Updates


class Settling:
    """The updates of one engine's holdings. `waiting`: gradients whose updates are still to be made."""

    def __init__(self, holdings: Sequence[Holding], updates: Updates, exchange: Exchange, traffic: Traffic):
        self.holdings, self.updates, self.exchange, self.traffic = holdings, updates, exchange, traffic
        self.waiting = Waiting(updates.policy.gradients, traffic)
        self.travelling: deque[tuple[int, Callable[[], None]]] = deque()  # units, and the wait for their weights
        self.begun: dict[int, Callable[[], None]] = {}  # the same of units whose forward comes next

    def at_once(self, k: int, grad: Tensor, rate: float, norms: Tensor) -> None:
        """Update unit k, which then leaves."""
        self.updates.apply(k, self.holdings[k], grad, rate, norms)
        self._travel(k)

    def begin(self, k: int) -> None:
        """The update of unit k that waits, if one does: the same arithmetic as at the end of its step, later."""
        if k in self.waiting.rates:
            self._late(k)
            self.begun[k] = self.exchange.weights(self.holdings[k])

    def catch_up(self, k: int) -> None:
        """Unit k's update, if it waits or has begun, is over after this."""
        self.begin(k)
        if k in self.begun:
            self.begun.pop(k)()
            self.holdings[k].updated()

    def flush(self) -> None:
        """All updates that wait, as a pass of its own."""
        order = [*self.waiting.rates][::-1]
        if not order:
            return
        ahead = Ahead(order, self.holdings, self.waiting)
        for position, k in enumerate(order):
            ahead.turn(position)
            self._late(k)
            self._travel(k)
        self.arrive()
        self.updates.step_together(self.holdings)
        self.traffic.settle()

    def arrive(self, but: int = 0) -> None:
        """Updated units leave when their weights are everywhere; of the last `but` nobody waits."""
        while len(self.travelling) > but:
            k, wait = self.travelling.popleft()
            wait()
            self.holdings[k].updated()
            self.holdings[k].leave(changed=False)

    def abandon(self) -> None:
        """Forget what a step that broke off has left."""
        self.waiting = Waiting(self.updates.policy.gradients, self.traffic)
        self.travelling.clear()
        self.begun.clear()

    def _late(self, k: int) -> None:
        grad, rate = self.waiting.take(k)
        self.updates.apply(k, self.holdings[k], grad, rate)

    def _travel(self, k: int) -> None:
        self.travelling.append((k, self.exchange.weights(self.holdings[k])))
        self.arrive(self.exchange.behind)
