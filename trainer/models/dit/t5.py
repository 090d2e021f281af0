"""T5's encoder (arXiv 1910.10683), layer by layer: the text encoder of 4.8 billion parameters, of which one layer of 0.2 is at work.

Nothing masks the padding here: models that were trained on T5's states of a prompt and of the padding behind it draw from both.
A layer adds a learned number to each score of attention, by how far two tokens are apart; the first layer owns these numbers,
and what it makes of them, the bias, is a value that all others read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

from trainer.units import Unit, holder


class T5EncoderModel(transformers.T5EncoderModel):
    """As its file has it: transformers widens a fifth of the weights of a file in fp16 to fp32, 2 GiB of RAM more, and of
    no use to layers that compute one by one in fp32 anyway."""

    def __init__(self, config: transformers.T5Config):
        super().__init__(config)
        self._keep_in_fp32_modules = set()


def encode(encoder: nn.Module, ids: Tensor) -> Tensor:
    """(B, L, D), through transformers' own forward pass."""
    return encoder(ids)[0]


def split(encoder: nn.Module, model: str, ids: str, writes: str) -> list[Unit]:
    """Units of the encoder called `model`: from token ids (B, L), a value of the name `ids`, to states (B, L, D)."""
    stack, bias = encoder.encoder, f"{model}.bias"
    names = [f"{model}.shared", *(f"{model}.encoder.block.{i}" for i in range(len(stack.block)))]
    units = [
        Unit(names[0], holder({names[0]: encoder.shared}), (ids,), (names[0],), lambda tokens: encoder.shared(tokens))
    ]
    for i, (name, block) in enumerate(zip(names[1:], stack.block, strict=True)):
        reads, written = ((names[0],), (name, bias)) if i == 0 else ((names[i], bias), (name,))
        units.append(Unit(name, holder({name: block}), reads, written, _through(block, first=i == 0)))
    final = f"{model}.encoder.final_layer_norm"
    module = holder({final: stack.final_layer_norm})
    units.append(Unit(final, module, (names[-1],), (writes,), lambda hidden: stack.final_layer_norm(hidden)))
    return units


def _through(block: nn.Module, first: bool) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    def run(hidden: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        hidden, bias = block(hidden, None, bias)[:2]
        return (hidden, bias) if first else hidden  # bias: (1, heads, L, L)

    return run


def tokens(tokenizer: transformers.PreTrainedTokenizerBase, prompts: list[str], length: int) -> Tensor:
    """(B, length), cut off or padded to it."""
    read = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    assert isinstance(read.input_ids, torch.Tensor)
    return read.input_ids


def small_tokenizer() -> transformers.T5Tokenizer:
    """A tokenizer of T5's kind with the letters and a few words, for models that bring none and draw nothing."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["▁a", "▁photo", "▁of", "▁the", "▁dog", "▁cat", "▁in", "▁on"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -3.0) for word in words] + [(letter, -4.0) for letter in letters]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
