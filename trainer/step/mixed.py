"""Mixed precision for fp32 weights: torch's autocast around each unit, and its likeness where torch has none.

Autocast casts the inputs of matrix products, convolutions and attention to 16 bits and those of norms to fp32. On meta
tensors torch refuses it, so a simulation casts the same operators by hand and therefore allocates the same copies.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainer.policy import Policy

LOW = {
    F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm, torch.mm, torch.addmm,
    Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
}  # fmt: skip
HIGH = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, torch.norm}


def autocast(policy: Policy, device: torch.device) -> AbstractContextManager:
    """What a unit runs under. Weights that are stored in 16 bits need nothing."""
    if policy.weights != "fp32" or policy.compute == torch.float32:
        return nullcontext()
    if device.type == "meta":
        return Likeness(policy.compute)
    return torch.autocast(device.type, policy.compute)


class Likeness(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtype = self.dtype if func in LOW else torch.float32 if func in HIGH else None
        if dtype is None:
            return func(*args, **kwargs)
        return func(*(_cast(x, dtype) for x in args), **{name: _cast(x, dtype) for name, x in kwargs.items()})


def _cast(value, dtype: torch.dtype):
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
