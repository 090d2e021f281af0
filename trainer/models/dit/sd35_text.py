"""What prompts become for Stable Diffusion 3 and 3.5: the states of three text encoders, and the pooled ones of two.

    text   = [CLIP-L's | OpenCLIP-G's | zeros]  last states but one, (B, 77, 768 + 1280 -> 4096)
             [T5-XXL's                        ]  last states, (B, 256, 4096), below them
    pooled = [CLIP-L's | OpenCLIP-G's]           projected states of the end of the text, (B, 768 + 1280)

T5 may be left out, as the pipeline of diffusers lets it, and then is zeros: the model was trained with that, too (arXiv
2403.03206, section 5.3). Those zeros are put in by the denoiser's first unit, so that nobody has to keep them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5Tokenizer

from trainer.errors import ConfigError
from trainer.files import regular
from trainer.models.dit import t5
from trainer.models.dit.sd35_units import T5_TOKENS
from trainer.models.sd.text import LENGTH, layers, pooled, tokenize, tokenizer
from trainer.models.sound import AGAIN, understood
from trainer.units import Unit

VALUES = ("text", "pooled")
ENCODERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": t5.T5EncoderModel,
}
PADS = ("<|endoftext|>", "!")  # of the two CLIPs


def tokens(tokenizers: Sequence[Any], prompts: list[str]) -> dict[str, Tensor]:
    """{"input_ids": (B, 77), "input_ids_2": (B, 77)}, and "input_ids_3": (B, 256) where there is a tokenizer of T5."""
    read = tokenize(list(tokenizers[:2]), prompts)
    if len(tokenizers) > 2:
        read["input_ids_3"] = t5.tokens(tokenizers[2], prompts, T5_TOKENS)
    return read


def encode(encoders: Sequence[nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Through the encoders' own forward passes; the text without the zeros that a T5 left out stands for."""
    first, second = (
        encoder(tokens[name], output_hidden_states=True)
        for encoder, name in zip(encoders[:2], ("input_ids", "input_ids_2"), strict=True)
    )
    third = [t5.encode(encoder, tokens["input_ids_3"]) for encoder in encoders[2:]]
    text = _joined(first.hidden_states[-2], second.hidden_states[-2], *third)
    return {"text": text, "pooled": _beside(first.text_embeds, second.text_embeds)}


def split(encoders: Sequence[nn.Module]) -> list[Unit]:
    """Units of the text path: read input_ids, input_ids_2 and, with a T5, input_ids_3; write text and pooled."""
    units: list[Unit] = []
    states: list[str] = []
    for model, encoder, ids in zip(("text", "text_2"), encoders[:2], ("input_ids", "input_ids_2"), strict=True):
        inner = encoder.text_model
        hidden = layers(units, f"{model}.text_model", inner, ids, len(inner.encoder.layers))
        units.append(pooled(model, encoder, (hidden[-1], ids), f"{model}.pooled"))
        states.append(hidden[-2])
    units.append(Unit("text_2.pool", nn.Module(), ("text.pooled", "text_2.pooled"), ("pooled",), _beside))
    for encoder in encoders[2:]:
        units += t5.split(encoder, "text_3", "input_ids_3", "text_3.states")
        states.append("text_3.states")
    units.append(Unit("text_2.join", nn.Module(), tuple(states), ("text",), _joined))
    return units


def _beside(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=-1)


def _joined(first: Tensor, second: Tensor, third: Tensor | None = None) -> Tensor:
    """CLIP's states side by side; where T5 has read the prompt, as wide as its states and above them."""
    clip = _beside(first, second)
    if third is None:
        return clip
    return torch.cat([pad(clip, (0, third.shape[-1] - clip.shape[-1])), third], dim=-2)


def shapes(configs: Mapping[str, Mapping[str, Any]], rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes of `rows` prompts, given the configurations of the parts by their folders in a model of diffusers."""
    denoiser, last = configs["transformer"], configs.get("text_encoder_3")
    clip = sum(configs[folder]["hidden_size"] for folder in ("text_encoder", "text_encoder_2"))
    text = (rows, LENGTH, clip) if last is None else (rows, LENGTH + T5_TOKENS, last["d_model"])
    return {"text": (text, torch.float32), "pooled": ((rows, denoiser["pooled_projection_dim"]), torch.float32)}


def tokenizers(path: Path) -> list[Any]:
    """CLIP's two, shipped ones where the model at `path` brings none, and T5's where it brings its encoder."""
    made: list[Any] = []
    for folder, padding in zip(("tokenizer", "tokenizer_2"), PADS, strict=True):
        made.append(_read(path / folder, CLIPTokenizer) or tokenizer(padding))
    if (path / "text_encoder_3").is_dir():
        last = _read(path / "tokenizer_3", T5Tokenizer)
        if last is None:
            raise ConfigError(
                f"{path} has a T5 encoder, and no tokenizer_3/tokenizer.json for it",
                "copy the model's folder again, or take text_encoder_3 out of its model_index.json and remove the folder: "
                "then prompts are read by the two CLIPs alone",
            )
        made.append(last)
    return made


def _read(place: Path, kind: Any) -> Any:
    """The tokenizer in a folder; None where there is none."""
    if place.is_dir():
        regular.only_files(place, AGAIN)
    if not any((place / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    with understood(str(place)):
        return kind.from_pretrained(place, local_files_only=True)


def small_tokenizers() -> list[Any]:
    return [*(tokenizer(padding) for padding in PADS), t5.small_tokenizer()]
