"""Adapters of several layers that are one matrix in another program: q, k and v of a transformer, for kohya's names.

    [W_q; W_k; W_v] + s [B_q 0 0; 0 B_k 0; 0 0 B_v] [A_q; A_k; A_v]

has the very updates that the three adapters have, with three times the rank and, for the same scale, three times the alpha.
diffusers finds the zeros and takes the three apart again. A layer without an adapter gets rows of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.errors import ConfigError

Place = tuple[
    tuple[int, ...], Callable[[Tensor], Tensor], int
]  # shape of the joint tensor, what goes there, from which element


@dataclass(frozen=True)
class Share:
    """What is one layer's of a joint adapter.

    index, count: which one it is of the layers with adapters
    first, rows:  its own first row of the joint matrix, and the rows of all
    above, below: rows of layers without an adapter beside it, which it fills with zeros
    """

    index: int
    count: int
    first: int
    rows: int
    above: int = 0
    below: int = 0

    def of_a(self, tensor: Tensor) -> Place:
        """A (rank, in) in [A_q; A_k; A_v]."""
        rank, *rest = tensor.shape
        return (self.count * rank, *rest), _same, self.index * tensor.numel()

    def of_b(self, tensor: Tensor) -> Place:
        """B (out, rank) in the diagonal."""
        rank = tensor.shape[1]
        left, right = self.index * rank, (self.count - 1 - self.index) * rank
        width = self.count * rank
        return (
            (self.rows, width),
            lambda own: pad(own, (left, right, self.above, self.below)),
            (self.first - self.above) * width,
        )

    def of_magnitudes(self, tensor: Tensor) -> Place:
        """DoRA's, one a row, as a column."""
        if self.above or self.below:
            raise ConfigError(
                "lora_kohya has no place for DoRA on only some of q, k and v, which are one matrix there",
                "leave lora_kohya out of --formats, or put adapters on all three",
            )
        return (self.rows, 1), _same, self.first


def _same(tensor: Tensor) -> Tensor:
    return tensor


def shares(denoiser: nn.Module, path: Callable[[str], str], adapted: Collection[str]) -> dict[str, Share]:
    """By module path in `denoiser`, for those of `adapted` that `path` calls by one name with others."""
    joint: dict[str, list[tuple[str, int]]] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            plain = name.removesuffix(".base_layer")
            joint.setdefault(path(plain), []).append((plain, module.out_features))
    found: dict[str, Share] = {}
    for members in joint.values():
        mine = [i for i, (name, _) in enumerate(members) if name in adapted]
        if len(members) == 1 or not mine:
            continue
        begin, total = [sum(rows for _, rows in members[:i]) for i in range(len(members))], sum(r for _, r in members)
        for index, i in enumerate(mine):
            name, rows = members[i]
            above = begin[i] if index == 0 else 0
            end = begin[mine[index + 1]] if index + 1 < len(mine) else total
            found[name] = Share(index, len(mine), begin[i], total, above, end - begin[i] - rows)
    return found
