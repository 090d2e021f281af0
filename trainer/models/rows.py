"""Prompts of different lengths in one batch: as long as the longest of them, and no longer.

What a family makes of a prompt is cached in one length. A family whose denoiser attends to a mask says with it how long a
prompt really is; a batch is cut to the longest of its rows, and halves of a batch are padded to the longer one. Masked
positions take no part in anything, so neither changes the mathematics. The lengths are read on the host, before anything
goes to the card: nothing in a step waits to learn them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of one prompt each, (L, C) or (P,), as a batch (B, ...). Where there is a "mask" (L,), what it masks in every
    row is cut off the end of "text" and "mask"."""
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if "mask" not in values:
        return values
    longest = int(values["mask"].any(0).nonzero().max()) + 1
    return values | {name: values[name][:, :longest] for name in ("text", "mask") if name in values}


def joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Batches one after the other; with a "mask", each padded to the longest by what is masked."""
    if "mask" in batches[0]:
        longest = max(batch["mask"].shape[1] for batch in batches)
        batches = [
            {name: _longer(value, longest) if name in ("text", "mask") else value for name, value in batch.items()}
            for batch in batches
        ]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def in_full(value: Tensor) -> Tensor:
    """Numbers in fp32; a mask as it is."""
    return value.float() if value.is_floating_point() else value


def _longer(values: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), with zeros at the end."""
    return pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))
