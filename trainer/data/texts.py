"""Prompts become embeddings once, before training, so that the text encoders need not stay on the card.

Where a text encoder is trained there is nothing to keep: then a prompt becomes its token ids, and the engine does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from trainer.events import Notice, Stage
from trainer.files.store import Store, key, module_digest
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts
from trainer.models.rows import in_full
from trainer.units import Unit

TOGETHER = 64  # prompts that go through a layer while it is on the card, and that a kill can cost
Values = dict[str, Tensor]


def token_ids(parts: Parts, prompts: list[str]) -> dict[str, dict[str, Tensor]]:
    """Prompt -> {"input_ids": (L,), ...}; {} where the tokenizers are not loaded."""
    if not parts.tokenizers or not prompts:
        return {}
    ids = parts.family.tokens(parts, prompts)
    return {prompt: {name: rows[i].cpu() for name, rows in ids.items()} for i, prompt in enumerate(prompts)}


def encode_prompts(
    parts: Parts, prompts: Iterable[str], device: torch.device | str, store: Store | None = None
) -> Stage[dict[str, dict[str, Tensor]]]:
    """Embeddings of `prompts`: returns {prompt: the family's `text_values`}, fp32 on the CPU.

    Layer by layer: each is on the card once for all prompts, and alone there, which is what lets SDXL's encoders (3.1 GiB in
    fp32) be read by a card of any size. The values are those of the whole encoders, bit for bit.
    """
    prompts, store = list(dict.fromkeys(prompts)), store or Store(None)
    phase = Phase("cache text", device)
    yield phase.start(len(prompts))
    encoders, tokens = module_digest(*parts.text_encoders), token_ids(parts, prompts)
    names = parts.family.text_values
    keys = {
        p: key(kind="text 1", encoders=encoders, tokens={n: ids.tolist() for n, ids in tokens[p].items()})
        for p in prompts
    }
    texts = {prompt: store.get(keys[prompt], names) for prompt in prompts}
    missing = [prompt for prompt in prompts if texts[prompt] is None]
    units = parts.family.text_units(parts) if missing else []
    for first in range(0, len(missing), TOGETHER):
        some = missing[first : first + TOGETHER]
        rows = [{name: ids[None] for name, ids in tokens[prompt].items()} for prompt in some]
        before = len(prompts) - len(missing) + first
        for done in through(units, rows, names, device, lambda module: visiting(module, device)):
            yield phase.progress(before + done * len(some) // len(units), some[0])
        for prompt, row in zip(some, rows, strict=True):
            texts[prompt] = {name: in_full(row[name][0]) for name in names}
            store.put(keys[prompt], texts[prompt])
    if store.remade:
        yield Notice(f"{store.remade} damaged cache files were made again.")
    yield phase.end(f"{len(missing)} prompts encoded, {len(prompts) - len(missing)} from the cache")
    return texts


@torch.no_grad()
def through(
    units: Sequence[Unit],
    rows: Sequence[Values],
    keep: Sequence[str],
    device: torch.device | str,
    visit: Callable[[nn.Module], AbstractContextManager],
) -> Iterator[int]:
    """Take every row of values through the units, one unit after the other; yields how many units are done.

    A row's values wait where they came from and are replaced by what units write, `keep` at last. `visit(module)` is held
    while a unit's module works on `device`.
    """
    last = {name: number for number, unit in enumerate(units) for name in unit.reads}
    for number, unit in enumerate(units):
        with visit(unit.module):
            for row in rows:
                written = unit.run(*(row[name].to(device) for name in unit.reads))
                written = written if isinstance(written, tuple) else (written,)
                home = row[unit.reads[0]].device
                row |= {name: value.to(home) for name, value in zip(unit.writes, written, strict=True)}
                for name in [name for name in row if name not in keep and last.get(name, -1) <= number]:
                    del row[name]
        yield number + 1
