"""A recording without a card: the operators of a step, run again over the same tensors.

As a CUDA graph does, it runs nothing anew in Python: every number that the host handed over is baked in, and what is read
lies where it lay. A step that only works because the host tells it something each time thus gives other bits here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}


class Operators(TorchDispatchMode):
    """The calls that were made, and what they wrote to as it was before."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.mine: set[int] = set()  # storages that were made here

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func._schema.name not in WAITS, f"the host asks the card: {func}"
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    self._remember(tensor)
        out = func(*args, **kwargs)
        given = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.mine.add(tensor.untyped_storage()._cdata)
        self.calls.append((func, args, kwargs, out))
        return out

    def _remember(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.mine:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self.before.setdefault(tensor.untyped_storage()._cdata, (whole, whole.clone()))


class Tape:
    """memory/cuda_graphs.py's Recording, with operators in place of kernels."""

    def __init__(self, run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], inputs: Sequence[Tensor], pool: Any):
        self.inputs = [tensor.clone() for tensor in inputs]
        with Operators() as seen:
            self.outputs = run(self.inputs)
        self.calls = seen.calls
        for whole, before in seen.before.values():
            whole.copy_(before)  # recording takes no step

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            given = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.untyped_storage()._cdata not in given:
                    old.detach().copy_(new)
        return tuple(tensor.clone() for tensor in self.outputs)
