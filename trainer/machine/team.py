"""Several cards as one: the same program in one process a card, and the little that these tell each other.

Data parallel training is accumulation laid over cards. Every rank draws the whole global step from the same generators,
computes its own rows (`data.batches.share`) and the ranks add up their gradients, unit by unit, while backward goes on;
after that every decision (norm, clipping, overflow, update) is the same arithmetic on the same numbers everywhere, and
nothing else has to be exchanged but what people ask for. Processes are started by `torchrun`, `accelerate launch` or
`--cards N`; accelerate sets up the group. `ALONE` is the team of one process: it does nothing and imports nothing.

Words of control travel over gloo between the hosts' memories, so that no card is waited for; gradients over the cards'
own backend (NCCL; gloo on CPUs).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from trainer.errors import ConfigError

T = TypeVar("T")


def _nothing() -> None:
    pass


GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")  # gloo's words


def _renamed(now: str, before: str) -> Callable[..., Any]:
    """A function of torch.distributed that got another name in torch 2.13."""
    return getattr(torch.distributed, now, None) or getattr(torch.distributed, before)


@dataclass(frozen=True)
class Team:
    """This process among those of one run. rank: 0 leads: it alone writes the run folder and has the screen."""

    rank: int = 0
    size: int = 1
    words: Any = None  # torch's process group for what hosts tell each other; None in a team of one

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def behind(self) -> int:
        """How many units' gradients may be on their way while the next unit's are computed."""
        return min(1, self.size - 1)

    def sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add up `tensor` over all ranks, in place; call what comes back before it is read. On a card that call
        makes the computing stream wait, not the host."""
        if self.size == 1:
            return _nothing
        work = torch.distributed.all_reduce(tensor, async_op=True)
        assert work is not None, "every process of the run is a member of the group"

        def wait() -> None:
            work.wait()

        return wait

    def scatter(self, mine: Tensor, tensor: Tensor) -> Callable[[], None]:
        """As `sum`, but each rank gets its part of the sum alone, in `mine`: as many numbers for each, in their order."""
        return _renamed("reduce_scatter_single", "reduce_scatter_tensor")(mine, tensor, async_op=True).wait

    def spread(self, tensor: Tensor, mine: Tensor) -> Callable[[], None]:
        """Begin to put together `tensor` from everybody's part of it, which `mine` is, on every rank."""
        if self.size == 1:
            return _nothing
        return _renamed("all_gather_single", "all_gather_into_tensor")(tensor, mine, async_op=True).wait

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensors, which are of one size, in host memory of the first; the others get nothing."""
        tensor = tensor.cpu()
        found = [torch.empty_like(tensor) for _ in range(self.size)] if self.leads else []
        torch.distributed.gather(tensor, found or None, 0, group=self.words)
        return found

    def whole(self, parts: Tensor, numbers: list[int], count: int) -> Tensor:
        """Rows (count, n) from everybody's `parts` (m, n) of them, whose places are `numbers`: the same sums on all ranks."""
        if self.size == 1:
            return parts
        rows = torch.zeros(count, parts.shape[1], device=parts.device)
        rows[torch.tensor(numbers, device=parts.device)] = parts
        torch.distributed.all_reduce(rows)
        return rows

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether a flag is up on any rank, for several flags in one message."""
        if self.size == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self.words)
        return tuple(bool(flag) for flag in told)

    def tell(self, value: T) -> T:
        """Rank 0's value, on every rank. Anything that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, 0, group=self.words)
        return box[0]

    def told(self, find: Callable[[], T]) -> T:
        """What rank 0 alone finds out, on every rank; what it met that a person can mend, too. For what changes a disk, or would
        differ while another changes it."""
        if self.size == 1:
            return find()
        found: T | ConfigError | None = None
        if self.leads:
            try:
                found = find()
            except ConfigError as error:
                found = error
        what = self.tell(found)
        if isinstance(what, ConfigError):
            raise what
        return cast(T, what)

    def gather(self, value: T) -> list[T]:
        """Everybody's values in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self.words)
        return found

    def in_turn(self, events: Generator[Any, None, T]) -> Generator[Any, None, T]:
        """Rank 0 goes through `events` first and the others after it, who then find its work on disk. Returns the result."""
        if not self.leads:
            self.wait()
        result = yield from events
        if self.leads:
            self.wait()
        self.wait()
        return result

    def first(self, events: Iterator[Any], help: Callable[[Any], None]) -> Iterator[Any]:
        """Events of rank 0 alone, for which the others wait: pictures, readings, files. What it tells them meanwhile (by
        `tell`; None would end it) they do: `help` is called with it."""
        if self.leads:
            yield from events
            self.tell(None)
            return
        while (asked := self.tell(None)) is not None:
            help(asked)

    def lost(self, error: BaseException) -> bool:
        """Whether `error` is what a rank meets when another has gone: a message that never came, or a connection that broke."""
        known = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
        return self.size > 1 and (isinstance(error, known) or any(words in str(error) for words in GONE))

    def wait(self) -> None:
        """Until everybody is here."""
        if self.size > 1:
            torch.distributed.barrier(group=self.words)

    def leave(self) -> None:
        """What is done together is over, on every rank. A process that ends while the group's threads are there may be aborted
        at its very end (gloo: "terminate called without an active exception", 3 of 20 ends on a busy machine)."""
        if self.size > 1:
            torch.distributed.destroy_process_group()


class Clock(Protocol):
    """What follows a simulated step (plan/simulate.py): it numbers messages, as it numbers copies."""

    def copied(self, way: str, size: int, after: int | None) -> int: ...

    def waited(self, number: int) -> None: ...


@dataclass
class Wire:
    """Who listens to what ranks of a simulation tell each other, if somebody does."""

    clock: Clock | None = None


@dataclass(frozen=True)
class Rehearsed(Team):
    """As many cards as a plan is made for: the same bytes on each of them, and nobody to tell. What each of them would send,
    and receive, by rings of messages, is told to `wire`."""

    wire: Wire = field(default_factory=Wire, compare=False)

    @contextmanager
    def followed(self, clock: Clock) -> Iterator[None]:
        self.wire.clock = clock
        try:
            yield
        finally:
            self.wire.clock = None

    def sum(self, tensor: Tensor) -> Callable[[], None]:
        return self._sent(2 * tensor.nbytes)

    def scatter(self, mine: Tensor, tensor: Tensor) -> Callable[[], None]:
        return self._sent(tensor.nbytes)

    def spread(self, tensor: Tensor, mine: Tensor) -> Callable[[], None]:
        return self._sent(tensor.nbytes)

    def _sent(self, size: int) -> Callable[[], None]:
        """A message in which each part of `size` bytes passes all cards but one."""
        if self.size == 1 or (clock := self.wire.clock) is None:
            return _nothing
        number = clock.copied("link", size * (self.size - 1) // self.size, None)
        return lambda: clock.waited(number)

    def tell(self, value: T) -> T:
        return value

    def collect(self, tensor: Tensor) -> list[Tensor]:
        return [torch.empty_like(tensor) for _ in range(self.size)]


ALONE = Team()


def join(cpu: bool) -> tuple[Team, torch.device]:
    """The team that the launcher's environment describes, and this process's device; accelerate does both.

    Many copies of one CPU would each take all of its threads, so on CPUs they share them.
    """
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    device = torch.device(str(state.device))
    if state.num_processes == 1:
        return ALONE, device
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // state.num_processes))
    # the first may draw class images for hours while the others wait for it
    words = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    return Team(state.process_index, state.num_processes, words), device
