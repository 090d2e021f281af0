"""Host memory that the engine asks for, through one door, so that it can be pinned, counted and simulated.

On a CUDA run the tensor is pinned (a copy to the card can then overlap with computing), on a CPU run it is ordinary
memory. In a simulation it is a meta tensor whose storage is registered here as host memory, so that the same code path
runs and the planner books its bytes under RAM instead of under the card.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_simulated = WeakIdKeyDictionary()  # storages of meta tensors that stand for host memory
_making = False  # one is being made: the planner's tracker sees its storage before it can be registered


def empty(shape: int | tuple[int, ...], dtype: torch.dtype, like_device: torch.device | str) -> Tensor:
    """An uninitialised host tensor for a run on `like_device`."""
    global _making
    device = torch.device(like_device)
    if device.type != "meta":
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    _making = True
    try:
        tensor = torch.empty(shape, dtype=dtype, device="meta")
    finally:
        _making = False
    _simulated[tensor.untyped_storage()] = True
    return tensor


def holds(storage: torch.UntypedStorage) -> bool:
    """Whether a meta storage stands for host memory; a tracker asks while the storage is being made, too."""
    return _making or storage in _simulated
