"""Prompts of Z-Image: what Qwen3-4B thinks of them before its last layer.

The prompt is a user's message in Qwen's chat template, with the answer's thought left open, in at most 512 tokens. The
transformer attends to no padding, so the mask stays with the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trainer.models.dit import language, qwen
from trainer.units import Unit

VALUES = ("text", "mask")
LENGTH = 512  # tokens
STATES = (-2,)


def tokens(tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str]) -> dict[str, Tensor]:
    """{"input_ids": (B, 512), "mask": (B, 512), true where a token stands}."""
    (tokenizer,) = tokenizers
    said = [qwen.as_chat(tokenizer, prompt, thinking=True) for prompt in prompts]
    made = tokenizer(said, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {"input_ids": made["input_ids"], "mask": made["attention_mask"].bool()}


def encode(encoders: Sequence[nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"text": (B, 512, 2560), "mask": (B, 512)} through the encoder's own forward pass."""
    ids, mask = tokens["input_ids"], tokens["mask"]
    return {"text": language.encode(encoders[0], ids, mask, STATES), "mask": mask}


def split(encoders: Sequence[nn.Module]) -> list[Unit]:
    """The same layer by layer: from what `tokens` gives to the text; the mask is there already."""
    return language.split(encoders[0], STATES)


def shapes(configs: Mapping[str, Mapping[str, Any]], rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Of the longest prompts' text, by the configurations of the model's parts."""
    width = configs["transformer"]["cap_feat_dim"]
    return {"text": ((rows, LENGTH, width), torch.float32), "mask": ((rows, LENGTH), torch.bool)}


def tokenizers(path: Path) -> list[PreTrainedTokenizerBase]:
    """The one that lies with the model at `path`."""
    return [qwen.tokenizer(path / "tokenizer")]


def small_tokenizers() -> list[PreTrainedTokenizerBase]:
    """A small one of the same kind, for `tiny` models."""
    return [qwen.small()]
