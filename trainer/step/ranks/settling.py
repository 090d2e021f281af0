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
from trainer.step.gradients import Gradients
from trainer.step.ranks.exchange import Exchange
from trainer.step.residency import Holding
from trainer.step.updates import Updates

RECENT = 1 / 4  # weight of the last step in the share of those that are clipped
RARELY = 1 / 8  # from this share on a step that is made again would cost more than early updates save


class Settling:
    """The updates of one engine's holdings. `waiting`: gradients whose updates are still to be made."""

    def __init__(self, holdings: Sequence[Holding], updates: Updates, exchange: Exchange, traffic: Traffic):
        self.holdings, self.updates, self.exchange, self.traffic = holdings, updates, exchange, traffic
        self.waiting = Waiting(updates.policy.gradients, traffic)
        self.travelling: deque[tuple[int, Callable[[], None]]] = deque()  # units, and the wait for their weights
        self.begun: dict[int, Callable[[], None]] = {}  # the same of units whose forward comes next
        self.early: frozenset[int] = frozenset()  # units whose updates do not wait in this step
        self.foreseen = updates.decision
        self.made: list[int] = []  # units whose early update may still be taken back
        self.clipped = 0.0  # share of the last steps that were
        self.again = 0  # steps that were taken back and made again

    def arrived(
        self,
        k: int,
        grad: Gradients | None,
        summed: Callable[[], None] | None,
        rates: Sequence[float],
        update: bool,
        pieces: list[Tensor],
    ) -> None:
        """The end of unit k's visit in backward: its gradient is whole, is measured, and is applied or waits."""
        holding, changed = self.holdings[k], summed is not None and update
        if summed is not None:
            summed()
            pieces.append(self.exchange.norms_of_unit(grad.norms()))
        if changed and k in self.early:
            self._early_update(k, grad.flat, rates[k])
        elif changed and not self.updates.policy.two_passes:
            self.updates.apply(k, holding, grad.flat, rates[k], pieces[-1])
            self._travel(k)
        else:
            if changed:
                self.waiting.store(k, grad.flat, rates[k], holding.lend(grad.flat))
            holding.leave(changed=False)

    def foresee(self, update: bool, backward: Sequence[int], learns: Sequence[bool]) -> None:
        """Before a step: whose update will be made as if nothing had to be clipped. Their weights, where these stay on the card,
        start for the host now, in the order in which backward changes them."""
        self._broken_off()
        if self.updates.policy.early_updates and self.clipped < RARELY:
            able = [k for k in backward if learns[k] and self.holdings[k].may_be_early]
            self.early = frozenset(able)
            for k in able:
                if k not in self.waiting.rates:
                    self.holdings[k].weights.remember()
        self.foreseen = self.updates.foresee(update)

    def _early_update(self, k: int, grad: Tensor, rate: float) -> None:
        """Update unit k as if nothing had to be clipped; what it was is kept."""
        holding = self.holdings[k]
        holding.weights.change()
        self.updates.apply(k, holding, grad, rate, decided=self.foreseen)
        holding.updated_early()
        holding.leave(changed=False)
        self.made.append(k)

    def judge(self, update: bool) -> bool:
        """Behind a step's decision: whether its early updates are those that it asks for. If not they are taken back, and what
        waits is forgotten: the step was never made."""
        if not self.updates.policy.early_updates:
            return True
        self.traffic.meet()
        # of a step that changes nothing there is nothing to take back, and in a simulation there is no norm
        calm = not update or self.traffic.device.type == "meta" or self.updates.came_true(self.foreseen)
        self.clipped += RECENT * ((not calm) - self.clipped)
        if not calm and self.early:
            self.again += 1
            self.traffic.settle()  # the step that comes has the card to itself
            self._take_back()
            return False
        for k in self.made:
            self.holdings[k].accept()
        self._end_early()
        return True

    def _take_back(self) -> None:
        """What the step at hand has done so far."""
        for k in self.made:
            self.holdings[k].take_back()
        self._end_early()
        self.waiting.clear()

    def _broken_off(self) -> None:
        """A step that an error ended has made no update."""
        if self.made:
            self._take_back()
        self._end_early()

    def _end_early(self) -> None:
        self.made.clear()
        self.early = frozenset()
        self.traffic.room = 0

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
            if k in self.early:
                self.holdings[k].weights.remember()

    def flush(self) -> None:
        """All updates that wait, as a pass of its own."""
        self._broken_off()
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
        self._take_back()
        self.waiting = Waiting(self.updates.policy.gradients, self.traffic)
        self.travelling.clear()
        self.begun.clear()

    def _late(self, k: int) -> None:
        grad, rate = self.waiting.take(k)
        self.updates.apply(k, self.holdings[k], grad, rate)

    def _travel(self, k: int) -> None:
        self.travelling.append((k, self.exchange.weights(self.holdings[k])))
        self.arrive(self.exchange.behind)
