"""Prompts of different lengths in one batch: as long as the longest of them, and no longer.

What a family makes of a prompt is cached in one length. A family whose denoiser attends to a mask says with it how long a
prompt really is; a batch is cut to the longest of its rows, and halves of a batch are padded to the longer one. Masked
positions take no part in anything, so neither changes the mathematics. The lengths are read on the host, before anything
goes to the card: nothing in a step waits to learn them. Where all rows are equally long the mask has no columns, (B, 0), and
attention needs none, which its faster kernels ask for: that, too, is known from a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of one prompt each, (L, C) or (P,), as a batch (B, ...). Where there is a "mask" (L,), what it masks in every
    row is cut off the end of "text" and "mask", and a mask of ones is left out but for its rows."""
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if "mask" not in values:
        return values
    mask = values["mask"]
    longest = int(mask.any(0).nonzero().max()) + 1
    mask = mask[:, :longest]
    return values | {"text": values["text"][:, :longest], "mask": mask[:, :0] if mask.all() else mask}


def joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Batches one after the other; with a "mask", each padded to the longest by what is masked."""
    if "mask" in batches[0]:
        lengths = {batch["text"].shape[1] for batch in batches}
        if len(lengths) > 1 or any(batch["mask"].shape[1] for batch in batches):
            batches = [_padded(batch, max(lengths)) for batch in batches]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _padded(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The same batch with texts of `length`, and a mask for them."""
    text, mask = batch["text"], batch["mask"]
    mask = mask if mask.shape[1] else mask.new_ones(text.shape[:2])
    return {**batch, "text": _longer(text, length), "mask": _longer(mask, length)}


def in_full(value: Tensor) -> Tensor:
    """Numbers in fp32; a mask as it is."""
    return value.float() if value.is_floating_point() else value


def _longer(values: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), with zeros at the end."""
    return pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))
