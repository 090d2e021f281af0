"""A module on the card for as long as it is needed, and not a moment longer: one large model there at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trainer.files.mapped import forget, give_back


@contextmanager
def visiting(module: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
    """`module` computing on `device` in `dtype` (default fp32, whatever precision its file has); afterwards all is as
    before and the card's memory free.

    Tensors travel one by one while their originals stay where they are, so RAM never holds a second copy, and rounding
    changes nothing that stays.
    """
    device, dtype = torch.device(device), dtype or torch.float32
    homes = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        for tensor, home in homes:
            tensor.data = home.to(device, dtype if home.is_floating_point() else None)
            if tensor.data_ptr() != home.data_ptr():
                forget(home)
        yield module
    finally:
        for tensor, home in homes:
            tensor.data = home
            forget(home)
        give_back()
        if device.type == "cuda":
            torch.cuda.empty_cache()
