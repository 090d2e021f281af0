"""Adam whose second moment is Adafactor's: the means of a matrix's rows and columns instead of a number for each weight.

    r <- b2 r + (1 - b2) mean over columns of g^2      c <- the same over rows      v = r c / mean(r)
    m, in 8 bits, as its share of sqrt(v) with a scale for each group, as in kernels/moments.py

arXiv 1804.04235, section 3, with Adam's own decay and its correction of both moments, so that v is all that differs. A
convolution is the matrix of its output channels; a vector keeps its whole v. It is here to be measured beside the formats
that can be chosen, and cannot be chosen itself: benchmarks/NOTES.md says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from trainer.kernels.adamw_lowbit import State
from trainer.kernels.moments import FORMATS
from trainer.kernels.weights24 import pack, random_bits, random_key

from trainer.step.residency import Holding
from trainer.step.updates import Updates

GROUP, (TOP, _) = FORMATS["8bit"].group, FORMATS["8bit"].levels  # of m: elements of a scale, largest code


@dataclass(frozen=True)
class Adam:
    """What a step is made with. step: its number, from 1."""

    lr: float
    step: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class Piece:
    """The moments of one parameter, whose weights are the `part` of its unit's flat buffers."""

    def __init__(self, start: int, shape: torch.Size):
        self.part = slice(start, start + shape.numel())
        self.matrix = (shape[0], shape.numel() // shape[0])
        groups = -(-shape.numel() // GROUP)
        self.code, self.scale = torch.zeros(groups, GROUP, dtype=torch.int8), torch.zeros(groups, 1)
        self.vector = 1 in self.matrix
        self.rows, self.columns = torch.zeros(self.matrix[0], 1), torch.zeros(1, self.matrix[1])
        if self.vector:
            self.rows, self.columns = torch.zeros(self.matrix), torch.empty(0)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.code, self.scale, self.rows, self.columns))

    def step_(self, w: Tensor, g: Tensor, by: Adam) -> None:
        """Move the flat fp32 weights `w` by the gradient `g`."""
        ratio = (self.code * (self.scale / TOP)).view(-1)[: w.numel()]
        m = (ratio * self._v().sqrt()).lerp_(g, 1 - by.betas[0])
        square = g.view(self.matrix).square()
        if self.vector:
            self.rows.lerp_(square, 1 - by.betas[1])
        else:
            self.rows.lerp_(square.mean(1, keepdim=True), 1 - by.betas[1])
            self.columns.lerp_(square.mean(0, keepdim=True), 1 - by.betas[1])
        root = self._v().sqrt()
        first, second = (1 - beta**by.step for beta in by.betas)
        w.mul_(1 - by.lr * by.weight_decay).addcdiv_(m, root / second**0.5 + by.eps, value=-by.lr / first)
        ratio = torch.where(root > 0, m / root, 0.0)
        ratio = torch.nn.functional.pad(ratio, (0, -ratio.numel() % GROUP)).view(-1, GROUP)
        self.scale = ratio.abs().amax(1, keepdim=True)
        self.code = (ratio / torch.where(self.scale > 0, self.scale, 1.0) * TOP).round().to(torch.int8)

    def _v(self) -> Tensor:
        """Of each weight, flat."""
        if self.vector:
            return self.rows.flatten()
        mean = self.rows.mean()
        return (self.rows * (self.columns / torch.where(mean > 0, mean, 1.0))).flatten()


class Factored:
    """The moments of one unit's parameters, given as (where it starts, its shape)."""

    def __init__(self, places: Iterable[tuple[int, torch.Size]]):
        self.pieces = [Piece(start, shape) for start, shape in places]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def step_(self, state: State, grad: Tensor, by: Adam, clip: Tensor | None = None, seed: int = 0) -> None:
        """As the kernel's step on 24-bit weights, whose last bit it rounds as that does; the moments of `state` lie idle."""
        weight, correction = state.tensors["weight"], state.tensors["correction"]
        master, key = state.master(), random_key(seed, by.step)
        for piece in self.pieces:
            g, w = grad[piece.part].float(), master[piece.part]
            piece.step_(w, g if clip is None else g * clip, by)
            places = torch.arange(piece.part.start, piece.part.stop, dtype=torch.int32)
            weight[piece.part], correction[piece.part] = pack(w, weight.dtype, random_bits(places, key))


@contextmanager
def instead() -> Iterator[None]:
    """Inside, one run on a CPU of the trainer with 24-bit weights and bf16 arithmetic keeps its moments like this."""
    units: dict[int, Factored] = {}
    theirs = Updates.apply

    def apply(self: Updates, index: int, holding: Holding, grad: Tensor, lr: float, norm: Tensor | None = None) -> None:
        if grad.is_meta:  # the planner's rehearsal
            return theirs(self, index, holding, grad, lr, norm)
        decided, hyper = self.decision, self.policy.hyper
        assert self.scale.factor is None, "fp16 may skip a step"
        if decided.skip is None:
            unit = units.setdefault(index, Factored((place.start, place.shape) for place in holding.trained))
            by = Adam(lr, decided.number, hyper.betas, hyper.eps, hyper.weight_decay)
            unit.step_(holding.use_state(), grad.reshape(-1), by, decided.clip, self.policy.seed * 100003 + index)

    Updates.apply = apply
    try:
        yield
    finally:
        Updates.apply = theirs
