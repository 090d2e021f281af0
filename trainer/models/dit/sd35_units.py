"""The joint transformer of Stable Diffusion 3 and 3.5 as a list of units: its own modules, with every value named.

Picture tokens and text tokens go side by side through blocks that attend over both and have weights for each (MMDiT,
arXiv 2403.03206); time and pooled text become one embedding, from which every block makes its own scales, shifts and gates:

    x = x + gate attention(scale norm(x) + shift),  x = x + gate' mlp(scale' norm(x) + shift')

The first thirteen blocks of 3.5 medium attend a second time, over the picture alone. Those have 102 million parameters each
and are two units, attention and MLP, so that less of them is on the card at a time. Noise, sign and timestep are as the rest
of the trainer has them: the velocity noise - picture at 1000 times the noise level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.units import Unit, holder

CLASS = SD3Transformer2DModel
MODEL = "transformer"
LARGEST = 100_000_000  # parameters of a block that is one unit
T5_TOKENS = 256  # that a prompt has beside CLIP's, as the pipeline of diffusers has it


def split(denoiser: nn.Module, largest: int = LARGEST) -> list[Unit]:
    """Units of a SD3Transformer2DModel. Reads sample, timestep, text and pooled; writes prediction."""
    assert not hasattr(denoiser, "image_proj") or denoiser.image_proj is None, "image prompts are unknown here"
    units = [_time(denoiser), _text(denoiser), _picture(denoiser)]
    values = (f"{MODEL}.pos_embed", f"{MODEL}.context_embedder")
    for i, block in enumerate(denoiser.transformer_blocks):
        path = f"{MODEL}.transformer_blocks.{i}"
        large = sum(parameter.numel() for parameter in block.parameters()) > largest
        halved = large and not block.context_pre_only
        units += _halves(path, block, values) if halved else [_whole(path, block, values)]
        values = units[-1].writes
    return [*units, _out(denoiser, values[0])]


def call(denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """The prediction through diffusers' own forward pass."""
    text = _joined(values["text"], denoiser.config.joint_attention_dim)
    return denoiser(sample, text, values["pooled"], timestep, return_dict=False)[0]


def values_of(
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    joint_attention_kwargs: dict[str, Any] | None = None,
    **ignored: Any,
) -> dict[str, Tensor]:
    """What the pipeline calls the denoiser with, as named values."""
    assert not joint_attention_kwargs and not any(value is not None for value in ignored.values()), "unknown conditions"
    timestep = timestep.expand(len(hidden_states))
    return {"sample": hidden_states, "timestep": timestep, "text": encoder_hidden_states, "pooled": pooled_projections}


def _joined(text: Tensor, width: int) -> Tensor:
    """Text as the transformer reads it. Where no T5 has read the prompt, CLIP's states are narrower than that: (B, 77, 2048)
    become (B, 77 + 256, 4096) with zeros, as in the pipeline, and are kept without them."""
    return text if text.shape[-1] == width else pad(text, (0, width - text.shape[-1], 0, T5_TOKENS))


def _time(denoiser: nn.Module) -> Unit:
    name = f"{MODEL}.time_text_embed"
    embed = denoiser.time_text_embed
    return Unit(name, holder({name: embed}), ("timestep", "pooled"), (name,), lambda t, pooled: embed(t, pooled))


def _text(denoiser: nn.Module) -> Unit:
    name, width = f"{MODEL}.context_embedder", denoiser.config.joint_attention_dim

    def run(text: Tensor) -> Tensor:
        return denoiser.context_embedder(_joined(text, width))  # (B, 333, D)

    return Unit(name, holder({name: denoiser.context_embedder}), ("text",), (name,), run)


def _picture(denoiser: nn.Module) -> Unit:
    """Patches to tokens, each with its place added.

    The table of places has a row for each of 384 x 384 patches, 0.84 GiB in fp32, of which the middle is used. Half of a row
    says where the patch is across and half where it is down, so two lines of the table hold all of it, and the table itself
    never visits the card.
    """
    name, patches = f"{MODEL}.pos_embed", denoiser.pos_embed
    side, size = patches.pos_embed_max_size, patches.patch_size
    table = patches.pos_embed.reshape(side, side, -1)
    half = table.shape[-1] // 2
    module = holder({f"{name}.proj": patches.proj})
    module.register_buffer("across", table[0, :, :half].clone())  # (384, D/2)
    module.register_buffer("down", table[:, 0, half:].clone())

    def middle(line: Tensor, count: int) -> Tensor:
        assert count <= side, f"latents of more than {side * size} pixels along a side have no places"
        first = (side - count) // 2
        return line[first : first + count]

    def run(sample: Tensor) -> Tensor:
        height, width = sample.shape[-2] // size, sample.shape[-1] // size
        across = middle(module.across, width).expand(height, -1, -1)
        down = middle(module.down, height)[:, None].expand(-1, width, -1)
        places = torch.cat([across, down], dim=-1).reshape(1, height * width, -1)
        tokens = patches.proj(sample).flatten(2).transpose(1, 2)  # (B, N, D)
        return (tokens + places).to(tokens.dtype).contiguous()

    return Unit(name, module, ("sample",), (name,), run)


def _whole(path: str, block: nn.Module, values: tuple[str, ...]) -> Unit:
    """A block as one unit. The last one has nothing more to say of the text."""

    def run(hidden: Tensor, context: Tensor, embedding: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=embedding)
        return hidden if context is None else (hidden, context)

    writes = (path,) if block.context_pre_only else (path, f"{path}.context")
    return Unit(path, holder({path: block}), (*values, f"{MODEL}.time_text_embed"), writes, run)


def _halves(path: str, block: nn.Module, values: tuple[str, ...]) -> list[Unit]:
    """A block as two units: the attentions, and the MLPs with the scales, shifts and gates (B, 3, D) made for them."""
    assert not block.context_pre_only and block._chunk_size is None, "only whole blocks are taken apart"
    attends = {name: getattr(block, name) for name in ("norm1", "norm1_context", "attn", "attn2")}
    thinks = {name: getattr(block, name) for name in ("norm2", "norm2_context", "ff", "ff_context")}
    middle = tuple(f"{path}.attn{name}" for name in ("", ".context", ".modulation", ".context_modulation"))

    def attend(hidden: Tensor, context: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
        normed, gate, *modulation = block.norm1(hidden, emb=embedding)
        normed_context, context_gate, *context_modulation = block.norm1_context(context, emb=embedding)
        seen, seen_context = block.attn(hidden_states=normed, encoder_hidden_states=normed_context)
        hidden = hidden + gate[:, None] * seen
        if block.attn2 is not None:
            *modulation, again, gate = modulation
            hidden = hidden + gate[:, None] * block.attn2(hidden_states=again)
        context = context + context_gate[:, None] * seen_context
        return hidden, context, torch.stack(modulation, 1), torch.stack(context_modulation, 1)

    def think(hidden: Tensor, context: Tensor, modulation: Tensor, context_modulation: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _gated(hidden, block.norm2, block.ff, modulation),
            _gated(context, block.norm2_context, block.ff_context, context_modulation),
        )

    return [
        Unit(middle[0], _part(path, attends), (*values, f"{MODEL}.time_text_embed"), middle, attend),
        Unit(path, _part(path, thinks), middle, (path, f"{path}.context"), think),
    ]


def _part(path: str, modules: Mapping[str, nn.Module | None]) -> nn.Module:
    return holder({f"{path}.{name}": module for name, module in modules.items() if module is not None})


def _gated(hidden: Tensor, norm: nn.Module, mlp: nn.Module, modulation: Tensor) -> Tensor:
    shift, scale, gate = modulation[:, :, None].unbind(1)  # (B, 1, D) each
    return hidden + gate * mlp(norm(hidden) * (1 + scale) + shift)


def _out(denoiser: nn.Module, value: str) -> Unit:
    """Tokens back to a picture; of the sample only its size is looked at."""
    modules = {f"{MODEL}.norm_out": denoiser.norm_out, f"{MODEL}.proj_out": denoiser.proj_out}
    size, channels = denoiser.config.patch_size, denoiser.out_channels

    def run(hidden: Tensor, embedding: Tensor, sample: Tensor) -> Tensor:
        tokens = denoiser.proj_out(denoiser.norm_out(hidden, embedding))
        height, width = sample.shape[-2] // size, sample.shape[-1] // size
        patches = tokens.reshape(-1, height, width, size, size, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height * size, width * size)

    reads = (value, f"{MODEL}.time_text_embed", "sample")
    return Unit(f"{MODEL}.proj_out", holder(modules), reads, ("prediction",), run)
