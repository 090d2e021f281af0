"""Steps that repeat, replayed: which step may be, what of it changes, and what the host still counts.

A step is known by its shapes, by what its loss does with them and by which units learn. What it computes with is handed
over in tensors: values, what the loss compares with, and six numbers a unit for the optimizer, which an eager step passes
as arguments (adamw_lowbit.scalars). The first step of a kind runs eagerly, so that nothing is loaded or compiled while the
second is recorded (memory/cuda_graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from trainer.memory import allocator, cuda_graphs
from trainer.step.updates import Updates

Values = Mapping[str, Tensor]


@runtime_checkable
class Exchangeable(Protocol):
    """A loss whose tensors can be exchanged for others of the same shapes (objective/loss.py)."""

    def __call__(self, prediction: Tensor, index: int) -> tuple[Tensor, ...]: ...

    @property
    def kind(self) -> Hashable:
        """What it does, its tensors apart."""

    @property
    def tensors(self) -> list[Tensor]: ...

    def over(self, tensors: Sequence[Tensor]) -> Exchangeable: ...


# one step as the engine runs it: micro-batches, loss -> (losses, norm)
Run = Callable[[Sequence[Values], Any], tuple[Tensor, ...]]
Over = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]  # the same of its tensors in a row


class Replay:
    """The recorded steps of one engine. `abandon`: what to do about a step that broke off while it was recorded.

    trouble: why nothing is recorded any more (a card too full for it, a driver that cannot); empty where all is well
    """

    def __init__(self, updates: Updates, abandon: Callable[[], None]):
        self.updates, self.abandon, self.pool, self.trouble, self.told = updates, abandon, None, "", False
        self.seen: set[Hashable] = set()
        self.recordings: dict[Hashable, cuda_graphs.Recording] = {}

    def step(
        self, run: Run, micro: Sequence[Values], loss: Exchangeable, rates: Sequence[float]
    ) -> tuple[Tensor, ...] | None:
        """What `run` would return, by a recording; None where this step is the first of its kind, and is to run eagerly."""
        given = [tensor for batch in micro for tensor in batch.values()] + loss.tensors
        kind = (
            tuple(tuple(batch) for batch in micro),
            tuple((tensor.shape, tensor.dtype) for tensor in given),
            tuple(rate > 0 for rate in rates),
            loss.kind,
        )
        if kind not in self.recordings:
            if self.trouble or kind not in self.seen:
                self.seen.add(kind)
                self.forget()  # an eager step wants the memory that recordings have; they are made again when they are due
                return None
            try:
                self._record(kind, _over(run, micro, loss), given, rates)
            except RuntimeError as error:
                self.trouble = str(error).strip().splitlines()[0][:200]
                self.forget()
                self.abandon()
                return None
        self.updates.count(rates)
        self.updates.tell(rates)
        return self.recordings[kind](given)

    def _record(self, kind: Hashable, over: Over, given: Sequence[Tensor], rates: Sequence[float]) -> None:
        if self.pool is None:
            allocator.release()  # what eager steps left in the allocator's hands: a recording has memory of its own
            self.pool = cuda_graphs.pool(self.updates.device)
        with self.updates.told(rates):
            self.recordings[kind] = cuda_graphs.Recording(over, given, self.pool)

    def news(self) -> str:
        """Why steps run eagerly from here on, said once."""
        why = "" if self.told else self.trouble
        self.told = bool(self.trouble)
        return why

    def forget(self) -> None:
        """Give the recordings' memory back, for whoever needs the card between steps; the next step records anew."""
        if self.pool is not None:
            self.recordings.clear()
            self.pool = None
            allocator.release()


def _over(run: Run, micro: Sequence[Values], loss: Exchangeable) -> Over:
    """`run` over other tensors than it was given."""

    def over(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        batches = [{name: next(rest) for name in batch} for batch in micro]
        return run(batches, loss.over(list(rest)))

    return over
