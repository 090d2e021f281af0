"""Prompts become embeddings once, before training, so that the text encoders need not stay on the card.

Where a text encoder is trained there is nothing to keep: then a prompt becomes its token ids, and the engine does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.events import Notice, Stage
from trainer.files.store import Store, key, module_digest
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts


def token_ids(parts: Parts, prompts: list[str]) -> dict[str, dict[str, Tensor]]:
    """Prompt -> {"input_ids": (77 n,), ...}; {} where the tokenizers are not loaded."""
    if not parts.tokenizers or not prompts:
        return {}
    ids = parts.family.tokens(parts, prompts)
    return {prompt: {name: rows[i].cpu() for name, rows in ids.items()} for i, prompt in enumerate(prompts)}


def encode_prompts(
    parts: Parts, prompts: Iterable[str], device: torch.device | str, store: Store | None = None
) -> Stage[dict[str, dict[str, Tensor]]]:
    """Embeddings of `prompts`: returns {prompt: {"text": (77 n, C), "pooled": (P,) for SDXL}}, fp32 on the CPU."""
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
    if missing:
        for done, prompt in enumerate(missing, len(prompts) - len(missing) + 1):
            # one encoder on the card at a time: SDXL's two take 3 GiB together
            rows = parts.family.encode_text(parts, [prompt], visit=lambda encoder: visiting(encoder, device))
            texts[prompt] = {name: tensor[0].float().cpu() for name, tensor in rows.items()}
            store.put(keys[prompt], texts[prompt])
            yield phase.progress(done, prompt)
    if store.remade:
        yield Notice(f"{store.remade} damaged cache files were made again.")
    yield phase.end(f"{len(missing)} prompts encoded, {len(prompts) - len(missing)} from the cache")
    return texts
