"""Which slice of a unit's row of numbers a rank keeps the optimizer state of, and the runs that the row's norm is made of.

    block = max(65,536, n / 48)      slice = ceil(blocks / ranks) neighbouring blocks      run = one parameter within one block

A slice begins and ends at a block, so at a multiple of 128: no group of moments straddles two ranks. Norms are taken run by
run, on one card as on many, so no sum depends on how many ranks there are, and a step's bits don't either. (ZeRO of
arXiv 1910.02054 cuts a whole model's gradients so; here each unit is cut by itself, because a unit is what is updated at once.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.kernels.adamw_lowbit import ALIGN

SMALLEST = 1 << 16  # numbers of a block: parameters of one block or less are summed as clip_grad_norm_ does it
BLOCKS = 48  # of a row at most: 2, 3, 4, 6 or 8 ranks have as many each


@dataclass(frozen=True)
class Share:
    """A rank's slice of a row: numbers `first` to `first + count` of `whole`, its length with what fills it up for all ranks."""

    first: int
    count: int
    whole: int

    @classmethod
    def of(cls, n: int, rank: int = 0, size: int = 1) -> Share:
        """Of a row of n numbers; a single rank has the row as it is."""
        if size == 1:
            return cls(0, n, n)
        block = _block(n)
        count = -(-n // block // size) * block
        return cls(rank * count, count, size * count)

    def of_row(self, row: Tensor) -> Tensor:
        """This slice of `row`, which may be shorter than whole."""
        return row[self.first : self.first + self.count]


def _block(n: int) -> int:
    return max(SMALLEST, -(-n // BLOCKS // ALIGN) * ALIGN)


class Runs:
    """The runs of a row of n numbers, in which parameters lie at `extents` (start, stop), and which of them are in `share`."""

    def __init__(self, extents: Sequence[tuple[int, int]], n: int, share: Share):
        block = _block(n)
        runs = [
            (max(start, at), min(stop, at + block))
            for start, stop in extents
            for at in range(start // block * block, stop, block)
        ]
        end = share.first + share.count
        mine = [number for number, (start, _) in enumerate(runs) if share.first <= start < end]
        self.before, self.after = (mine[0], len(runs) - mine[-1] - 1) if mine else (0, len(runs))
        self.sizes: list[int] = []  # of the slice's pieces, what lies between runs among them
        self.places: list[int] = []  # which of those are runs
        at = share.first
        for start, stop in (runs[number] for number in mine):
            self.sizes += [start - at] if start > at else []
            self.places.append(len(self.sizes))
            self.sizes.append(stop - start)
            at = stop
        self.sizes += [end - at] if end > at else []

    def norms(self, mine: Tensor) -> Tensor:
        """The norm of each run of the row, fp32: of those in this slice, of which `mine` has the numbers; 0 for the others."""
        pieces = mine.split(self.sizes)
        found = [pieces[place] for place in self.places]
        norms = (
            torch.stack(torch._foreach_norm(found, 2.0, dtype=torch.float32)) if found else mine.new_zeros(0).float()
        )
        return F.pad(norms, (self.before, self.after)) if self.before or self.after else norms
