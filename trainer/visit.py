"""A module on the card for as long as it is needed, and not a moment longer: one large model there at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def visiting(module: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> Iterator[nn.Module]:
    """`module` on `device`, in `dtype` where one is given; afterwards all is as before and the card's memory free.

    Another precision is a copy, because rounding a module there and back would leave it changed.
    """
    device, home = torch.device(device), next(module.parameters()).device
    if dtype is not None and dtype != next(module.parameters()).dtype:
        guest = copy.deepcopy(module).to(device, dtype)
    else:
        guest = module.to(device)
    try:
        yield guest
    finally:
        if guest is module:
            module.to(home)
        del guest
        if device.type == "cuda":
            torch.cuda.empty_cache()
