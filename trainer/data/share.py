"""One rank's rows of a step that every rank drew: row after row, dealt out like cards.

A pair on two cards is thus the photo on one and its class image on the other. A share remembers how many photos and
class images the whole micro-batch had, because each half of the loss is a mean over all of them, wherever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trainer.data.batches import MicroBatch


def share(micro: Sequence[MicroBatch], rank: int, size: int) -> list[MicroBatch]:
    """What `rank` of `size` computes: of all rows of the step in their order every `size`-th, beginning with `rank`'s."""
    if size == 1:
        return list(micro)
    found, before = [], 0
    for number, batch in enumerate(micro):
        rows = [row for row in range(len(batch.target)) if (before + row) % size == rank]
        before += len(batch.target)
        if rows:
            found.append(_part(batch, rows, number))
    assert found, "prepare refuses fewer rows than ranks"
    return found


def _part(batch: MicroBatch, rows: list[int], number: int) -> MicroBatch:
    chosen = torch.tensor(rows)
    return replace(
        batch,
        values={name: value[chosen] for name, value in batch.values.items()},
        target=batch.target[chosen],
        weights=batch.weights[chosen],
        mask=None if batch.mask is None else batch.mask[chosen],
        instances=sum(row < batch.instances for row in rows),
        names=tuple(batch.names[row] for row in rows),
        counts=(batch.instances, len(batch.target) - batch.instances),
        number=number,
    )
