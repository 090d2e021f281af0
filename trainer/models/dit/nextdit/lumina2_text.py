"""Prompts of Lumina Image 2.0: what Gemma-2-2B thinks of them before its last layer, behind an instruction.

    You are an assistant designed to generate superior images ... <Prompt Start> a photo of sks dog

in at most 256 tokens with the instruction. Prompts are of different lengths, and the transformer attends to no padding: the mask
stays with the text. Nothing said is nothing, without the instruction, as the pipeline has it for the prompt that guides away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GemmaTokenizer, PreTrainedTokenizerBase

from trainer.models.dit import language
from trainer.units import Unit

VALUES = ("text", "mask")
LENGTH = 256  # tokens
STATES = (-2,)
BEFORE = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts. <Prompt Start> "
)


def tokens(tokenizers: Sequence[PreTrainedTokenizerBase], prompts: Sequence[str]) -> dict[str, Tensor]:
    """{"input_ids": (B, 256), "mask": (B, 256), true where a token stands}, padded at the end."""
    (tokenizer,) = tokenizers
    made = tokenizer(
        [BEFORE + prompt if prompt else "" for prompt in prompts],
        padding="max_length",
        padding_side="right",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    return {"input_ids": made["input_ids"], "mask": made["attention_mask"].bool()}


def encode(encoders: Sequence[nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"text": (B, 256, 2304), "mask": (B, 256)} through the encoder's own forward pass."""
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
    return [language.tokenizer(path / "tokenizer")]


def small_tokenizers() -> list[PreTrainedTokenizerBase]:
    """A small one of the same kind, for `tiny` models: words begin with their space, and unknown letters are bytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # which transformers brings

    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt.train_from_iterator(
        [BEFORE, "a photo of a dog"], trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    )
    model = json.loads(learnt.to_str())["model"]
    return [GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], add_bos_token=True)]
