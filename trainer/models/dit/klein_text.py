"""Prompts of FLUX.2 klein: what Qwen3-4B thinks after a quarter, a half and three quarters of its layers, side by side.

The prompt is a user's message in Qwen's chat template, with an empty thought behind it, in 512 tokens, cut off or padded.
The transformer reads padding like words (nothing masks it there), so texts keep their whole length.
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

VALUES = ("text",)
LENGTH = 512  # tokens
STATES = (9, 18, 27)  # of Qwen3's 36 layers; those behind the last are never run


def tokens(tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str]) -> dict[str, Tensor]:
    """{"input_ids": (B, 512), "mask": (B, 512), 1 where a token stands}."""
    (tokenizer,) = tokenizers
    said = [qwen.as_chat(tokenizer, prompt) for prompt in prompts]
    made = tokenizer(said, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {"input_ids": made["input_ids"], "mask": made["attention_mask"]}


def encode(encoders: Sequence[nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"text": (B, 512, 7680)} through the encoder's own forward pass."""
    return {"text": language.encode(encoders[0], tokens["input_ids"], tokens["mask"], STATES)}


def split(encoders: Sequence[nn.Module]) -> list[Unit]:
    """The same layer by layer: from what `tokens` gives to the text."""
    return language.split(encoders[0], STATES)


def shapes(configs: Mapping[str, Mapping[str, Any]], rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Of a batch's text, by the configurations of the model's parts."""
    return {"text": ((rows, LENGTH, configs["transformer"]["joint_attention_dim"]), torch.float32)}


def tokenizers(path: Path) -> list[PreTrainedTokenizerBase]:
    """The one that lies with the model at `path`."""
    return [qwen.tokenizer(path / "tokenizer")]


def small_tokenizers() -> list[PreTrainedTokenizerBase]:
    """A small one of the same kind, for `tiny` models."""
    return [qwen.small()]
