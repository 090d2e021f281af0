"""Host memory that the engine asks for, through one door, so that it can be pinned, counted and simulated.

On a CUDA run the tensor is pinned (a copy to the card can then overlap with computing), on a CPU run it is ordinary
memory. In a simulation it is a meta tensor whose storage is registered here as host memory, so that the same code path
runs and the planner books its bytes under RAM instead of under the card.

torch rounds every pinned allocation up to a power of two (pytorch#95823), which would take a third more RAM than was
planned for (SDXL with everything streamed: 27.0 instead of 17.0 GiB). So tensors are cut from slabs that are powers of
two already (17.5 GiB, both counted); a slab is given back when its last tensor is.
"""

from __future__ import annotations

import math
import warnings
import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SLAB = 1 << 29  # bytes at most, unless one tensor is larger: several of the largest units' states (SDXL: 147 MiB)
ALIGN = 512  # bytes, as the card's own allocator aligns

_simulated = WeakIdKeyDictionary()  # storages of meta tensors that stand for host memory
_making = False  # one is being made: the planner's tracker sees its storage before it can be registered
_slabs: list[tuple[weakref.ref, int]] = []  # storages, and the bytes of each that are taken


def empty(shape: int | tuple[int, ...], dtype: torch.dtype, like_device: torch.device | str) -> Tensor:
    """An uninitialised host tensor for a run on `like_device`."""
    global _making
    device = torch.device(like_device)
    if device.type == "cuda":
        return _from_slab(shape, dtype)
    if device.type != "meta":
        return torch.empty(shape, dtype=dtype, device="cpu")
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


def _from_slab(shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in the first slab that has room for it, or in a new one, which adds an eighth at most to what is held."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    _slabs[:] = [(slab, taken) for slab, taken in _slabs if slab() is not None]
    storage, index, taken = None, len(_slabs), 0
    for place, (slab, used) in enumerate(_slabs):
        if (found := slab()) is not None and found.nbytes() - used >= size:
            storage, index, taken = found, place, used
            break
    if storage is None:
        held = sum(found.nbytes() for slab, _ in _slabs if (found := slab()) is not None)
        storage = _pinned(_power(max(size, min(held // 16, SLAB))))
        _slabs.append((weakref.ref(storage), 0))
    _slabs[index] = (_slabs[index][0], taken + -(-size // ALIGN) * ALIGN)
    whole = torch.empty(0, dtype=torch.uint8).set_(storage, taken, (size,), (1,))
    return whole.view(dtype).view(shape)


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def _pinned(size: int) -> torch.UntypedStorage:
    """Pinned memory; ordinary memory where the system allows no more of it: right, but copies then block the host."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).untyped_storage()
    except RuntimeError as refusal:
        warnings.warn(
            f"No more memory could be pinned ({str(refusal).splitlines()[0]}): streaming goes on with ordinary memory, slower. "
            "Close other programs, raise `ulimit -l`, or give WSL more memory.",
            stacklevel=2,
        )
        return torch.empty(size, dtype=torch.uint8).untyped_storage()
