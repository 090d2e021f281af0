"""A card learned by doing, in a few seconds and in a process of its own, before anything is planned for it.

    context      what the card has less of, beside tensors, when a new process has begun, and has loaded its libraries and kernels
    workspaces   what torch hands out while a convolution runs, beyond its inputs, outputs and gradients
    rates        flops / seconds of the run's convolutions and products, forward and backward; bytes / seconds of copies

A process that has a context already cannot see what its own took, so another one begins and is told what was free before
(`apart`). It leaves nothing behind, and where it crashes the run has lost a measurement and not itself. The same code
measures a CPU, whose memory it reads as 0.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

from trainer.errors import ConfigError
from trainer.kernels.adamw_lowbit import State, step_
from trainer.kernels.geglu import geglu
from trainer.kernels.groupnorm_silu import groupnorm_silu
from trainer.kernels.layernorm import layernorm
from trainer.machine import convolutions, vitals
from trainer.machine.convolutions import Shape

BYTES = 1 << 27  # of a copy: large enough that its start does not count
ROUNDS = 3  # of which the fastest counts
TURN = 0.02  # seconds that are timed at a time: a card's queue is then long enough to be full
LIMIT = 120  # seconds, after which the other process is given up


@dataclass(frozen=True)
class Work:
    """What a run will do. products: (rows, inputs, outputs) of linear layers; attention: (batch, heads, tokens, head's width)."""

    dtype: str
    convolutions: tuple[Shape, ...]
    products: tuple[tuple[int, int, int], ...]
    attention: tuple[int, int, int, int]

    @classmethod
    def from_json(cls, said: dict) -> Work:
        shapes, products = (tuple(said[name]) for name in ("convolutions", "products"))
        return cls(
            said["dtype"],
            tuple(Shape(**each) for each in shapes),
            tuple(map(tuple, products)),
            tuple(said["attention"]),
        )


@dataclass(frozen=True)
class Seen:
    """Bytes, bytes a second and flops a second. Bytes are 0 where nothing could be read.

    bare, context: of the process beside torch's own, when it had just begun, and when everything was loaded
    workspaces, searched: the most that a convolution took, as it is and with the algorithm that cuDNN's search finds
    plain, quick: flops a second of convolutions so; products: of linear layers
    up, down, both: copies to the card, from it, and each of the two while the other goes on
    """

    bare: int
    context: int
    workspaces: int
    searched: int
    plain: float
    quick: float
    products: float
    up: float
    down: float
    both: float

    @classmethod
    def from_json(cls, said: dict) -> Seen:
        """Raises ValueError for what no card says."""
        found = cls(**said)
        rates = (found.plain, found.quick, found.products, found.up, found.down, found.both)
        sizes = (found.bare, found.context, found.workspaces, found.searched)
        if not all(math.isfinite(rate) and rate > 0 for rate in rates) or not all(size >= 0 for size in sizes):
            raise ValueError("rates above 0 and sizes are expected")
        return found


class Meter:
    """The clock and the memory of a device. `before`: bytes that were free before this process began."""

    def __init__(self, device: torch.device, before: int = 0):
        self.device, self.before, self.card = device, before, device.type == "cuda"

    def finish(self) -> None:
        """Everything that was queued is done."""
        if self.card:
            torch.cuda.synchronize(self.device)

    def taken(self) -> int:
        """Bytes that this process has of the card and torch does not hold."""
        if not self.card:
            return 0
        if (own := vitals.own_bytes(self.device)) is None:
            own = self.before - torch.cuda.mem_get_info(self.device)[0]
        return max(own - torch.cuda.memory_reserved(self.device), 0)

    def held(self) -> int:
        """Bytes that torch has handed out."""
        return torch.cuda.memory_allocated(self.device) if self.card else 0

    def most(self, act: Callable[[], object]) -> int:
        """Bytes that torch handed out for `act`, at its worst moment."""
        if not self.card:
            act()
            return 0
        self.finish()
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        act()
        self.finish()
        return torch.cuda.max_memory_allocated(self.device) - held

    def queued(self, act: Callable[[], object]) -> Callable[[], object]:
        """`act` as a card that never waits for Python does it: recorded, to be replayed. Where it cannot be, as it is."""
        if not self.card:
            return act
        recording = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(recording):
                act()
        except RuntimeError:
            return act
        return recording.replay

    def aside(self) -> AbstractContextManager[object]:
        """A queue of its own, where the device has more than one."""
        return torch.cuda.stream(torch.cuda.Stream(self.device)) if self.card else nullcontext()

    def seconds(self, act: Callable[[], object]) -> float:
        """Of one `act`, once everything it needs is loaded."""
        once = self._turn(act, 1)
        times = max(1, min(100, int(TURN / once)))
        return min(self._turn(act, times) for _ in range(ROUNDS))

    def _turn(self, act: Callable[[], object], times: int) -> float:
        self.finish()
        began = time.perf_counter()
        for _ in range(times):
            act()
        self.finish()
        return (time.perf_counter() - began) / times


@dataclass(frozen=True)
class Operator:
    """act: forward and backward; makes: bytes of the output and the gradients, which are there together at its end."""

    act: Callable[[], object]
    flops: int
    makes: int


def measure(work: Work, device: torch.device, before: int = 0, size: int = BYTES) -> Seen:
    """Everything, on `device`, by a process that has done nothing yet on it; `size`: bytes of a copy."""
    meter, dtype = Meter(device, before), getattr(torch, work.dtype)
    torch.empty(1, device=device)
    bare = meter.taken()
    convolved = [convolution(shape, dtype, device) for shape in work.convolutions]
    multiplied = [product(*shape, dtype, device) for shape in work.products]
    for act in (*kernels(dtype, device), attention(*work.attention, dtype, device), *(each.act for each in multiplied)):
        act()
    workspaces = most(convolved, meter)
    with convolutions.searching():
        for operator in convolved:
            operator.act()  # the search itself may try what it does not take
        searched = most(convolved, meter)
        context = meter.taken()  # before there are recordings, which have memory of their own
        quick = rate(convolved, meter)
    plain, products = rate(convolved, meter), rate(multiplied, meter)
    del convolved, multiplied
    up, down, both = copies(size, meter)
    return Seen(bare, context, workspaces, searched, plain or products, quick or products, products, up, down, both)


def rate(operators: Sequence[Operator], meter: Meter) -> float:
    """Flops a second of one after the other; 0 where there are none."""
    seconds = sum(meter.seconds(meter.queued(operator.act)) for operator in operators)
    return sum(operator.flops for operator in operators) / seconds if operators else 0.0


def most(operators: Iterable[Operator], meter: Meter) -> int:
    """Bytes of the largest workspace."""
    return max((max(meter.most(operator.act) - operator.makes, 0) for operator in operators), default=0)


def convolution(shape: Shape, dtype: torch.dtype, device: torch.device) -> Operator:
    """3 x 3, channels last, as a denoiser's level has it."""
    form = torch.channels_last
    x = _drawn((shape.rows, shape.channels, shape.height, shape.width), dtype, device).to(memory_format=form)
    weight = _drawn((shape.channels, shape.channels, 3, 3), dtype, device).to(memory_format=form)
    flops = 3 * 2 * x.numel() * shape.channels * 9
    return _operator(lambda x, weight: conv2d(x, weight, padding=1), x, weight, flops)


def product(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Operator:
    x, weight = _drawn((rows, inputs), dtype, device), _drawn((outputs, inputs), dtype, device)
    return _operator(linear, x, weight, 3 * 2 * rows * inputs * outputs)


def _operator(forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, flops: int) -> Operator:
    x.requires_grad_()
    weight.requires_grad_()
    pull = forward(x, weight).detach()

    def act() -> object:
        out = forward(x, weight)
        return out, torch.autograd.grad(out, (x, weight), pull)

    return Operator(act, flops, pull.nbytes + x.nbytes + weight.nbytes)


def attention(
    batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    q, k, v = (_drawn((batch, heads, tokens, width), dtype, device).requires_grad_() for _ in range(3))
    return lambda: torch.autograd.grad(scaled_dot_product_attention(q, k, v).sum(), (q, k, v))


def kernels(dtype: torch.dtype, device: torch.device) -> Iterator[Callable[[], object]]:
    """Each of our kernels once, forward and backward; where none can be built, what works in its place."""
    x, weight, bias = (_drawn(shape, dtype, device).requires_grad_() for shape in ((2, 64, 8, 8), (64,), (64,)))
    yield lambda: groupnorm_silu(x, weight, bias, 32).sum().backward()
    yield lambda: layernorm(x.permute(0, 2, 3, 1), weight, bias).sum().backward()
    yield lambda: geglu(x.flatten(1)).sum().backward()

    def update() -> None:
        def empty(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=kind, device=device)

        compute = torch.bfloat16 if dtype == torch.float32 else dtype
        state = State.allocate(4096, weights="24bit", moments="8bit", compute_dtype=compute, empty=empty)
        state.initialise(torch.zeros(4096, device=device))
        step_(state, torch.ones(4096, device=device), lr=1e-3, step=1)

    yield update


def copies(size: int, meter: Meter) -> tuple[float, float, float]:
    """Bytes a second up, down, and of each while the other goes on."""
    there = [torch.zeros(size, dtype=torch.uint8, device=meter.device) for _ in range(2)]
    here = [torch.zeros(size, dtype=torch.uint8, pin_memory=meter.card) for _ in range(2)]
    ways = meter.aside(), meter.aside()

    def up() -> None:
        with ways[0]:
            there[0].copy_(here[0], non_blocking=True)

    def down() -> None:
        with ways[1]:
            here[1].copy_(there[1], non_blocking=True)

    def both() -> None:
        up()
        down()

    return size / meter.seconds(up), size / meter.seconds(down), size / meter.seconds(both)


def _drawn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def apart(work: Work, device: torch.device, before: int = 0, size: int = BYTES) -> Seen:
    """`measure` in another process. `before`: bytes that are free now. Raises a ConfigError where that does not come off."""
    said = json.dumps({"work": asdict(work), "device": str(device), "before": before, "size": size})
    words = [sys.executable, "-m", "trainer.machine.probe", said]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=True)
        return Seen.from_json(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        why = f"it took more than {LIMIT} s"
    except subprocess.CalledProcessError as error:
        why = next(
            (line for line in reversed((error.stderr or "").splitlines()) if line.strip()),
            f"it ended with {error.returncode}",
        )
    except (OSError, ValueError, TypeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
    raise ConfigError(
        f"{device} could not be measured: {why[:160]}", "see what `python -m trainer doctor` says of the card"
    )


def main(said: str) -> None:
    asked = json.loads(said)
    device = torch.device(asked["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    found = measure(Work.from_json(asked["work"]), device, asked["before"], asked["size"])
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(sys.argv[1])
