"""Watching every storage live and die: what a piece of real code would take on a card, without the card.

Torch hands each operator to a `TorchDispatchMode`; the tracker keeps a weak reference to every storage an operator
returns, so autograd's saved tensors count while the graph holds them and stop counting when it lets go. On the meta
device nothing is allocated, so a step of a 2.6 billion parameter model is followed in seconds; on real CPU tensors the
same class watches real memory, which is how the tests compare it with the allocator's own account. Alongside it counts
arithmetic (torch's flop formulas), bytes read and written, and bytes that cross between card and host.
Same idea as torch.distributed's MemTracker, but by place and kind, and cheap enough for 13,000 operators in seconds.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from trainer.plan.pages import Block, Pages
from trainer.plan.pretend import Outcomes
from trainer.plan.timeline import Entry

BUFFERS = ("aten::empty", "aten::zeros", "aten::new_empty", "aten::new_zeros")


@dataclass(frozen=True)
class Watched:
    """What one phase did: live bytes at the worst moment, by kind, and the work counted over its whole length."""

    card_peak: int = 0
    card_parts: dict[str, int] = field(default_factory=dict)  # kind -> bytes at the card's peak; sums to card_peak
    host_peak: int = 0
    host_parts: dict[str, int] = field(default_factory=dict)
    card_kept: int = 0  # live on the card when the watch began: weights and optimizer state, not the step's own
    card_pages: int = (
        0  # the least that torch's allocator holds for the card's tensors at its worst moment (plan/pages.py)
    )
    flops: int = 0
    moved: int = 0  # bytes that elementwise operators, norms and copies within the card read and wrote there
    matmul_moved: int = 0  # the same for operators with a flop formula
    sent_up: int = 0  # host to card
    sent_down: int = 0  # card to host
    operators: int = 0
    seconds: float = 0.0  # of the simulation itself
    peak_at: str = ""  # the operator that made the peak
    timeline: tuple[Entry, ...] = field(default=(), repr=False)  # of a step whose copies were followed


class Tracker(TorchDispatchMode):
    """`with Tracker() as tracker: step()`, then `tracker.watched()`.

        tracker = Tracker(card="meta")        # "cpu" follows real tensors, "meta" a plan
        tracker.keep(module.parameters(), "weights")      # storages that exist already
        with tracker, tracker.kind("inputs"): ...         # what is made here is of this kind

    `host(storage)` says that a storage lies in host memory although its device is the card's (see machine/host.py);
    storages of any other device than the card's are host memory anyway.
    """

    def __init__(self, card: str = "meta", host: Callable[[torch.UntypedStorage], bool] | None = None):
        super().__init__()
        self.card, self.is_host = card, host or (lambda storage: False)
        self._outcomes = Outcomes() if card == "meta" else None
        self._live: dict[
            int, tuple[Any, int, tuple[str, str]]
        ] = {}  # storage -> (weak reference, bytes, (place, kind))
        self._pages = Pages()
        self._blocks: dict[int, Block | None] = {}
        self._now: Counter[tuple[str, str]] = Counter()
        self._total = {"card": 0, "host": 0}
        self._copies = 0
        self._kinds: list[str] = []
        self._rules: dict[Any, tuple[Any, tuple[int, ...], bool]] = {}
        self.restart()

    # what the reader came for

    def watched(self) -> Watched:
        """Everything since `restart` (or the beginning)."""
        return Watched(self._peak["card"], dict(self._parts["card"]), self._peak["host"], dict(self._parts["host"]), self._kept,
                       self._pages.most, self.flops, self.moved, self.matmul_moved, self.sent_up, self.sent_down, self.operators,
                       time.perf_counter() - self._began, self._peak_at, (*self._timeline, self._entry("end")))  # fmt: skip

    def restart(self) -> None:
        """Begin a new watch: peaks start from what is live now, counters from zero."""
        self.flops = self.moved = self.matmul_moved = self.sent_up = self.sent_down = self.operators = 0
        self._peak, self._parts = {"card": 0, "host": 0}, {"card": {}, "host": {}}
        self._pages.restart()
        self._kept, self._began, self._peak_at = self._total["card"], time.perf_counter(), "what was there before"
        self._timeline: list[Entry] = []
        self._told = (0, 0, 0)  # of the work so far, what stands in the timeline
        self._mark("card", self._peak_at)
        self._mark("host", self._peak_at)

    def live(self, place: str = "card") -> dict[str, int]:
        """Bytes live now, by kind."""
        return {kind: size for (where, kind), size in self._now.items() if where == place and size}

    @contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """Storages made inside are of this kind."""
        self._kinds.append(name)
        try:
            yield
        finally:
            self._kinds.pop()

    def keep(self, tensors: Iterable[Tensor] | nn.Module, kind: str) -> None:
        """Count storages that exist already; those that are counted already move to `kind`."""
        if isinstance(tensors, nn.Module):
            tensors = [*tensors.parameters(), *tensors.buffers()]
        for tensor in tensors:
            self._add(tensor.untyped_storage(), kind)
        self._mark("card", kind)
        self._mark("host", kind)

    def forget(self, module: nn.Module) -> None:
        """A module leaves the card: its storages are no longer counted."""
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.untyped_storage()._cdata in self._live:
                self._remove(tensor.untyped_storage()._cdata)

    # the clock of memory/stream.py: copies are numbered from the beginning, because a step waits for those of the one before

    def copied(self, way: str, size: int, after: int | None) -> int:
        self._copies += 1
        self._timeline.append(self._entry(way, self._copies, size, after))
        return self._copies

    def waited(self, number: int) -> None:
        self._timeline.append(self._entry("wait", number))

    def met(self) -> None:
        self._timeline.append(self._entry("meet"))

    def _entry(self, kind: Any, number: int = -1, size: int = 0, after: int | None = None) -> Entry:
        """With the work that was queued since the entry before."""
        now = self.flops, self.moved, self.operators
        flops, moved, operators = (new - old for new, old in zip(now, self._told, strict=True))
        self._told = now
        return Entry(kind, flops, moved, operators, number, size, after)

    # the dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if rule is None:
            rule = self._rules[func] = self._rule(func)
        formula, written, composite = rule
        if composite:  # under inference mode composite operators arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        self.operators += 1
        known = self._outcomes.find(func, args, kwargs) if self._outcomes is not None else None
        if known is not None and known.make is not None:
            return self._repeat(func, known.make, known.work)
        out = known.unchanged(args) if known is not None else func(*args, **kwargs)
        fresh = False
        for tensor in () if written or func.is_view else _tensors(out):  # neither views nor changes in place allocate
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                fresh = True
                self._add(storage, self._buffer(func, tensor))
        if fresh:
            self._mark_after(func)
        before = self.flops, self.moved, self.matmul_moved
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if (fresh or written) and not func._schema.name.startswith("aten::empty"):
            self._traffic(written, args, kwargs, out, formula is not None)
        if self._outcomes is not None and known is None:
            work = self.flops - before[0], self.moved - before[1], self.matmul_moved - before[2]
            self._outcomes.learn(func, args, kwargs, out, fresh, work)
        return out

    def _repeat(self, func: Any, make: Callable[[], Any], work: tuple[int, int, int]) -> Any:
        """An operator on shapes that were seen before: its outputs without running its Python again."""
        out = make()
        for tensor in _tensors(out):
            self._add(tensor.untyped_storage(), self._buffer(func, tensor))
        self._mark_after(func)
        flops, moved, matmul_moved = work
        self.flops += flops
        self.moved += moved
        self.matmul_moved += matmul_moved
        return out

    def _buffer(self, func: Any, tensor: Tensor) -> str | None:
        """Flat buffers are the engine's: bytes that visit the card (memory/stream.py), or a unit's gradients."""
        if tensor.dim() != 1 or self._kinds or not func._schema.name.startswith(BUFFERS):
            return None
        return "window" if tensor.dtype == torch.uint8 else "gradients" if tensor.is_floating_point() else None

    def _rule(self, func: Any) -> tuple[Any, tuple[int, ...], bool]:
        packet = func._overloadpacket
        formula = flop_registry.get(packet, EXTRA_FORMULAS.get(packet))
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        # some operators have a kernel and a decomposition (silu_backward): on a card the kernel runs
        composite = formula is None and has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), "CPU")
        arguments = func._schema.arguments
        written = tuple(
            i
            for i, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        return formula, written, composite

    def _traffic(self, written: tuple[int, ...], args: tuple, kwargs: dict, out: Any, matmul: bool) -> None:
        """Inputs are read and outputs written once; what is changed in place is both."""
        size = {"card": 0, "host": 0}
        changed = [args[i] for i in written if i < len(args)]
        touched = {id(tensor): tensor for tensor in _tensors((args, tuple(kwargs.values()), out))}
        for tensor in (*touched.values(), *_tensors(changed)):
            size[self._place(tensor)] += tensor.numel() * tensor.element_size()
        if size["card"] and size["host"]:  # a copy across the bus: what is written says which way
            target = next(_tensors(changed), None)
            target = next(_tensors(out)) if target is None else target
            travelling = target.numel() * target.element_size()
            if self._place(target) == "card":
                self.sent_up += travelling
            else:
                self.sent_down += travelling
        elif matmul:
            self.matmul_moved += size["card"]
        else:
            self.moved += size["card"]

    # the books

    def _place(self, tensor: Tensor) -> str:
        entry = self._live.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            return entry[2][0]
        return "card" if tensor.device.type == self.card else "host"

    def _add(self, storage: torch.UntypedStorage, kind: str | None) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            if kind is not None:
                reference, size, (place, old) = self._live[key]
                self._now[place, old] -= size
                self._now[place, kind] += size
                self._live[key] = (reference, size, (place, kind))
            return
        if kind is None:
            kind = (
                self._kinds[-1]
                if self._kinds
                else "gradients"
                if torch._C._current_graph_task_id() != -1
                else "activations"
            )
        place = "card" if storage.device.type == self.card and not self.is_host(storage) else "host"
        books = weakref.ref(self)

        def died(_: Any, key: int = key) -> None:
            tracker = books()
            if tracker is not None and key in tracker._live:
                tracker._remove(key)

        self._live[key] = (weakref.ref(storage, died), size, (place, kind))
        if place == "card":
            self._blocks[key] = self._pages.take(size)
        self._now[place, kind] += size
        self._total[place] += size

    def _remove(self, key: int) -> None:
        _, size, (place, kind) = self._live.pop(key)
        self._pages.give(self._blocks.pop(key, None))
        self._now[place, kind] -= size
        self._total[place] -= size

    def _mark_after(self, func: Any) -> None:
        """Look for a new peak. Autograd adds gradients that meet in place, but not while a dispatch mode watches: there
        the sum is a new tensor and the old one dies at once, so such a sum is looked at when the next operator runs."""
        if func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1:
            return
        self._mark("card", func._schema.name)
        self._mark("host", func._schema.name)

    def _mark(self, place: str, name: str) -> None:
        if self._total[place] > self._peak[place]:
            self._peak[place] = self._total[place]
            self._parts[place] = self.live(place)
            if place == "card":
                self._peak_at = name


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (tuple, list)):
                yield from _tensors(value)


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(
    grad_out: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape)


EXTRA_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
