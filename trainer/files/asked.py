"""Tensors by name that come when they are asked for: their shapes are known before, and one at a time is there.

What several cards hold a slice each of is put together so, a unit at a time, while a checkpoint or an export is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class Asked(Mapping[str, Tensor]):
    """`like`: each tensor's shape and dtype, as one on the meta device; `bring`: makes the tensor of a name."""

    def __init__(self, like: Mapping[str, Tensor], bring: Callable[[str], Tensor]):
        self.like, self._bring = like, bring

    def beside(self, others: Mapping[str, Tensor]) -> Asked:
        """These, and behind them others that are here already."""
        return Asked({**self.like, **others}, lambda name: others[name] if name in others else self._bring(name))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.like:
            raise KeyError(name)
        return self._bring(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def like(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same names with tensors of the same shapes and dtypes, of which none has to be brought."""
    return tensors.like if isinstance(tensors, Asked) else tensors
