"""The transformer of FLUX.2 klein as units: diffusers' own modules, in their own order, with every value named.

Three modulations are computed from the noise level once and read by all blocks: a = (1 + scale) norm(x) + shift before a block's
attention or MLP, x + gate f(a) after it. So they are units whose values stay on the card, and whose cotangents come from
every block. Five blocks hold text and picture side by side with weights of their own (double), twenty hold both as one
sequence (single, parallel attention and MLP, arXiv 2302.05442).

A double block (245 M parameters) is three units: joint attention (75 M), the picture's MLP and the text's (85 M each). A
single block (123 M) stays whole: one matrix makes queries, keys, values and the MLP's input, one takes attention and MLP
back, and cutting either apart changes the order of its sums; between the two a cut is exact, but the value there is four
times as wide as the one between blocks.

Sample and prediction are packed, normalised latents (B, 128, h, w), each pixel a token; the text is (B, 512, 7680), padding and all.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Modulation
from torch import Tensor, nn

from trainer.units import Unit, holder

CLASS = Flux2Transformer2DModel
T = 1000  # our timestep of pure noise, and the model's factor
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
IMAGE, CONTEXT, SINGLE = (f"transformer.{name}" for name in MODULATIONS)
TIME, TURNS = "transformer.time_guidance_embed", ("transformer.pos_embed.cos", "transformer.pos_embed.sin")


def split(denoiser: nn.Module) -> list[Unit]:
    """Units of a Flux2Transformer2DModel. Reads sample, timestep, text; writes prediction."""
    assert not denoiser.config.guidance_embeds, "a model with a guidance embedding is distilled: klein base has none"
    units = [_time(denoiser)]
    for name in MODULATIONS:
        path, module = f"transformer.{name}", getattr(denoiser, name)
        units.append(Unit(path, holder({path: module}), (TIME,), (path,), _through(module)))
    units.append(_embedded(denoiser.x_embedder, "transformer.x_embedder", "sample"))
    units.append(_embedded(denoiser.context_embedder, "transformer.context_embedder", "text"))
    units.append(_positions(denoiser))
    picture, text = "transformer.x_embedder", "transformer.context_embedder"
    for i, block in enumerate(denoiser.transformer_blocks):
        path = f"transformer.transformer_blocks.{i}"
        units.append(_attention(path, block, picture, text))
        units.append(_mlp(path, block, ""))
        units.append(_mlp(path, block, "_context"))
        picture, text = f"{path}.ff", f"{path}.ff_context"
    hidden: tuple[str, ...] = (text, picture)
    for i, block in enumerate(denoiser.single_transformer_blocks):
        path = f"transformer.single_transformer_blocks.{i}"
        units.append(Unit(path, holder({path: block}), (SINGLE, *TURNS, *hidden), (path,), _single(block)))
        hidden = (path,)
    assert len(hidden) == 1, "a model without single blocks is unknown here"
    units.append(_out(denoiser, *hidden))
    return units


def call(denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: dict[str, Tensor]) -> Tensor:
    """The same through the model's own forward pass."""
    _, _, height, width = sample.shape
    places, words = _places(height, width, values["text"].shape[1], sample.device)
    answer = denoiser(
        hidden_states=_tokens(sample),
        encoder_hidden_states=values["text"],
        timestep=timestep / T,
        img_ids=places,
        txt_ids=words,
        return_dict=False,
    )[0]
    return _picture(answer, height, width)


def values_of(
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    guidance: Tensor | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
    **ignored: Any,
) -> dict[str, Tensor]:
    """What a pipeline of diffusers calls the transformer with, as named values. Tokens come row by row: the last one's
    position says how many rows and columns there are."""
    assert guidance is None and not joint_attention_kwargs, "unknown conditions"
    assert not any(isinstance(value, Tensor) for name, value in ignored.items() if name != "txt_ids"), sorted(ignored)
    last = img_ids.reshape(-1, 4)[-1].tolist()
    height, width = int(last[1]) + 1, int(last[2]) + 1
    assert hidden_states.shape[1] == height * width, "a picture to be edited beside the noise is unknown here"
    return {
        "sample": _picture(hidden_states, height, width),
        "timestep": timestep.float() * T,
        "text": encoder_hidden_states,
    }


def answer(prediction: Tensor) -> Tensor:
    """What a pipeline of diffusers expects of the transformer: our prediction (B, C, h, w) as tokens (B, h w, C)."""
    return _tokens(prediction)


def _tokens(picture: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return picture.flatten(2).transpose(1, 2)


def _picture(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, h w, C) -> (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _places(height: int, width: int, words: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (time, row, column, word) of the picture's tokens (h w, 4) and of the text's (L, 4), which count apart."""
    still, rows = torch.arange(1, device=device), torch.arange(height, device=device)
    columns, order = torch.arange(width, device=device), torch.arange(words, device=device)
    return torch.cartesian_prod(still, rows, columns, still), torch.cartesian_prod(still, still, still, order)


def _through(module: nn.Module):
    return lambda value: module(value)


def _time(denoiser: nn.Module) -> Unit:
    """Sinusoids of the noise level in fp32, two linear layers in the sample's dtype."""
    embed = denoiser.time_guidance_embed

    def run(sample: Tensor, timestep: Tensor) -> Tensor:
        waves = embed.time_proj(timestep / T * T)  # the model is told timestep / 1000 and multiplies
        return embed.timestep_embedder(waves.to(sample.dtype))  # (B, D)

    return Unit(TIME, holder({TIME: embed}), ("sample", "timestep"), (TIME,), run)


def _embedded(layer: nn.Module, path: str, value: str) -> Unit:
    def picture(sample: Tensor) -> Tensor:
        return layer(_tokens(sample))  # (B, h w, D)

    return Unit(path, holder({path: layer}), (value,), (path,), picture if value == "sample" else _through(layer))


def _positions(denoiser: nn.Module) -> Unit:
    """Cosines and sines of the rotary embedding, fp32, the text's before the picture's, as they are joined."""

    def run(sample: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        places, words = _places(sample.shape[2], sample.shape[3], text.shape[1], sample.device)
        both = zip(denoiser.pos_embed(words), denoiser.pos_embed(places), strict=True)
        cos, sin = (torch.cat(pair, dim=0) for pair in both)
        return cos, sin  # (L + h w, head_dim)

    return Unit("transformer.pos_embed", nn.Module(), ("sample", "text"), TURNS, run)


def _attention(path: str, block: nn.Module, picture: str, text: str) -> Unit:
    """The first half of a double block: text and picture attend to both, each with projections of its own."""
    modules = {f"{path}.norm1": block.norm1, f"{path}.norm1_context": block.norm1_context, f"{path}.attn": block.attn}

    def run(image: Tensor, context: Tensor, cos: Tensor, sin: Tensor, pictures: Tensor, words: Tensor):
        (shift, scale, gate), _ = Flux2Modulation.split(image, 2)
        (shift_text, scale_text, gate_text), _ = Flux2Modulation.split(context, 2)
        seen, said = block.attn(
            hidden_states=(1 + scale) * block.norm1(pictures) + shift,
            encoder_hidden_states=(1 + scale_text) * block.norm1_context(words) + shift_text,
            image_rotary_emb=(cos, sin),
        )
        return pictures + gate * seen, words + gate_text * said

    reads = (IMAGE, CONTEXT, *TURNS, picture, text)
    return Unit(f"{path}.attn", holder(modules), reads, (f"{path}.attn", f"{path}.attn_context"), run)


def _mlp(path: str, block: nn.Module, stream: str) -> Unit:
    """The second half, of the picture or (`stream` "_context") of the text, whose values fp16 cannot always hold."""
    norm, layer = getattr(block, f"norm2{stream}"), getattr(block, f"ff{stream}")
    name, modulation = f"{path}.ff{stream}", CONTEXT if stream else IMAGE

    def run(modulated: Tensor, hidden: Tensor) -> Tensor:
        _, (shift, scale, gate) = Flux2Modulation.split(modulated, 2)
        hidden = hidden + gate * layer(norm(hidden) * (1 + scale) + shift)
        return hidden.clip(-65504, 65504) if stream and hidden.dtype == torch.float16 else hidden

    modules = {f"{path}.norm2{stream}": norm, name: layer}
    return Unit(name, holder(modules), (modulation, f"{path}.attn{stream}"), (name,), run)


def _single(block: nn.Module):
    """A whole single block; the first of them joins text and picture."""

    def run(modulated: Tensor, cos: Tensor, sin: Tensor, *parts: Tensor) -> Tensor:
        hidden = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # (B, L + h w, D)
        return block(hidden, None, modulated, (cos, sin))

    return run


def _out(denoiser: nn.Module, hidden: str) -> Unit:
    modules = {"transformer.norm_out": denoiser.norm_out, "transformer.proj_out": denoiser.proj_out}

    def run(sample: Tensor, embedding: Tensor, both: Tensor) -> Tensor:
        height, width = sample.shape[2:]
        tokens = denoiser.norm_out(both[:, both.shape[1] - height * width :], embedding)
        return _picture(denoiser.proj_out(tokens), height, width)

    return Unit("transformer.proj_out", holder(modules), ("sample", TIME, hidden), ("prediction",), run)
