"""Decoder language models (Qwen3, Gemma 2) as text encoders: what they think of each token, layer by layer.

An image model does not let a language model write. It reads the prompt once and keeps the hidden states of some of its layers,

    h_0 = embedding of the tokens,    h_k = layer_k(h_{k-1}),    text = h_a, or h_a, h_b, h_c side by side,

and what comes after the last of them (further layers, the final norm, the head over the vocabulary) never runs. As every layer is
a unit, a model of 4 billion parameters encodes prompts on a card that holds one layer of a hundred million.

A token sees itself and earlier ones, none of the padding, and in layers with a sliding window (Gemma 2, arXiv 2408.00118) only
the nearest of them. The mask is made from the tokens' own within each layer, on the device, so nothing waits for its contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.errors import ConfigError
from trainer.files import regular
from trainer.models.sound import AGAIN, understood
from trainer.units import Unit, holder


def encode(model: nn.Module, ids: Tensor, mask: Tensor, states: Sequence[int]) -> Tensor:
    """(B, L, C n): hidden states of the given indices (h_k above; negative ones count from the end), through transformers' own
    forward pass: the reference that the units equal bit for bit."""
    answer = _inner(model)(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return torch.cat([answer.hidden_states[k] for k in states], dim=-1)


def split(model: nn.Module, states: Sequence[int]) -> list[Unit]:
    """Units of a language model with or without its head. They read input_ids (B, L) and mask (B, L), true where a token stands;
    they write text (B, L, C n). Layers after the last of `states` belong to no unit."""
    inner = _inner(model)
    path = "text" if inner is model else "text.model"
    layers = list(inner.layers)
    wanted = [k % (len(layers) + 1) for k in states]  # transformers counts the final norm's as one more
    assert max(wanted) < len(layers), "the state after the last layer is normed, which nobody asks for"
    names = [f"{path}.embed_tokens", *(f"{path}.layers.{i}" for i in range(max(wanted)))]
    units = [_tokens(inner, names[0]), _places(inner, f"{path}.rotary_emb", names[0])]
    for i, name in enumerate(names[1:]):
        reads = (names[i], "mask", *units[1].writes)
        units.append(Unit(name, holder({name: layers[i]}), reads, (name,), _through(inner, i)))
    units.append(Unit(f"{path}.states", nn.Module(), tuple(names[k] for k in wanted), ("text",), _side_by_side))
    return units


def _inner(model: nn.Module) -> nn.Module:
    """The stack of layers, where `model` has a head over it."""
    return getattr(model, "model", model)


def _side_by_side(*states: Tensor) -> Tensor:
    return torch.cat(states, dim=-1)


def _tokens(model: nn.Module, name: str) -> Unit:
    return Unit(name, holder({name: model.embed_tokens}), ("input_ids",), (name,), lambda ids: model.embed_tokens(ids))


def _places(model: nn.Module, name: str, hidden: str) -> Unit:
    """Cosines and sines of the places 0 to L - 1, in the dtype of what is computed; padding is counted, as transformers does."""

    def run(value: Tensor) -> tuple[Tensor, Tensor]:
        return model.rotary_emb(value, torch.arange(value.shape[1], device=value.device)[None])  # (1, L, D) each

    return Unit(name, nn.Module(), (hidden,), (f"{name}.cos", f"{name}.sin"), run)


def _through(model: nn.Module, i: int):
    """One layer; its attention is transformers' "sdpa", or "eager" where the model caps its scores (Gemma 2)."""
    layer, config = model.layers[i], model.config
    assert config._attn_implementation in ("sdpa", "eager"), config._attn_implementation
    window = config.sliding_window if config.layer_types[i] == "sliding_attention" else None

    def run(hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        seen = visible(mask, window)
        if config._attn_implementation == "eager":  # adds it to the scores
            seen = torch.where(
                seen, torch.zeros((), dtype=hidden.dtype, device=hidden.device), torch.finfo(hidden.dtype).min
            )
        return layer(hidden, attention_mask=seen, position_embeddings=(cos, sin))

    return run


def visible(mask: Tensor, window: int | None = None) -> Tensor:
    """(B, L) -> (B, 1, L, L): whether a token (third side) sees another (fourth)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    back = places[:, None] - places[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return seen & mask.bool()[:, None, None, :]


def tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """The one in the folder `place` of a model."""
    if not any((place / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ConfigError(
            f"{place} has no tokenizer",
            "copy or download the model's folder again, with the tokenizer that comes with it",
        )
    regular.only_files(place, AGAIN)
    with understood(str(place)):
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
