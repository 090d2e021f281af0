"""The UNet of diffusers as a list of units: its own modules, in its own order, with every value named.

A value is named after the module that wrote it, so a skip connection is just an earlier name read again. Nothing is
copied: a unit calls the very modules of the model, which keeps state dicts, adapters and swapped kernels working.
Latent sides must be multiples of 2^(number of downsamplings), as all training sizes are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.units import Unit, holder


def split(unet: nn.Module) -> list[Unit]:
    """Units of a UNet2DConditionModel. Reads sample, timestep, text (SDXL: pooled, time_ids); writes prediction."""
    _refuse_the_unknown(unet)
    units = [_time(unet), _conv_in(unet)]
    value = "unet.conv_in"
    skips = [value]
    for i, block in enumerate(unet.down_blocks):
        path = f"unet.down_blocks.{i}"
        for j, resnet in enumerate(block.resnets):
            value = _resnet(units, f"{path}.resnets.{j}", resnet, value)
            if getattr(block, "has_cross_attention", False):
                value = _attention(units, f"{path}.attentions.{j}", block.attentions[j], value)
            skips.append(value)
        for j, sampler in enumerate(block.downsamplers or ()):
            value = _sampler(units, f"{path}.downsamplers.{j}", sampler, value)
            skips.append(value)
    value = _resnet(units, "unet.mid_block.resnets.0", unet.mid_block.resnets[0], value)
    for j, (attention, resnet) in enumerate(zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True)):
        value = _attention(units, f"unet.mid_block.attentions.{j}", attention, value)
        value = _resnet(units, f"unet.mid_block.resnets.{j + 1}", resnet, value)
    for i, block in enumerate(unet.up_blocks):
        path = f"unet.up_blocks.{i}"
        for j, resnet in enumerate(block.resnets):
            value = _resnet(units, f"{path}.resnets.{j}", resnet, value, skips.pop())
            if getattr(block, "has_cross_attention", False):
                value = _attention(units, f"{path}.attentions.{j}", block.attentions[j], value)
        for j, sampler in enumerate(block.upsamplers or ()):
            value = _sampler(units, f"{path}.upsamplers.{j}", sampler, value)
    assert not skips
    units.append(_conv_out(unet, value))
    return units


def _refuse_the_unknown(unet: nn.Module) -> None:
    config = unet.config
    assert config.class_embed_type is None and config.num_class_embeds is None, (
        "class-conditional UNets are unknown here"
    )
    assert config.addition_embed_type in (None, "text_time"), config.addition_embed_type
    assert config.encoder_hid_dim_type is None and unet.time_embed_act is None and not config.center_input_sample
    known = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn"}
    kinds = {type(block).__name__ for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)}
    assert kinds <= known, f"unknown block types {kinds - known}"


def _time(unet: nn.Module) -> Unit:
    """Sinusoids in the sample's dtype, two linear layers; SDXL adds the embedding of the pooled text and the sizes."""
    modules = {"unet.time_embedding": unet.time_embedding}
    reads = ("sample", "timestep")
    if unet.config.addition_embed_type == "text_time":
        modules["unet.add_embedding"] = unet.add_embedding
        reads += ("pooled", "time_ids")

    def run(sample: Tensor, timestep: Tensor, *added: Tensor) -> Tensor:
        embedding = unet.time_embedding(unet.get_time_embed(sample, timestep), None)  # (B, 4 C)
        if added:
            conditions = dict(zip(("text_embeds", "time_ids"), added, strict=True))
            embedding = embedding + unet.get_aug_embed(embedding, None, conditions)
        return embedding

    return Unit("unet.time_embedding", holder(modules), reads, ("unet.time_embedding",), run)


def _conv_in(unet: nn.Module) -> Unit:
    multiple = 2 ** sum(block.downsamplers is not None for block in unet.down_blocks)

    def run(sample: Tensor) -> Tensor:
        assert all(side % multiple == 0 for side in sample.shape[2:]), f"latent sides must be multiples of {multiple}"
        return unet.conv_in(sample)  # (B, C, H/8, W/8)

    return Unit("unet.conv_in", holder({"unet.conv_in": unet.conv_in}), ("sample",), ("unet.conv_in",), run)


def _conv_out(unet: nn.Module, value: str) -> Unit:
    modules = {"unet.conv_norm_out": unet.conv_norm_out, "unet.conv_out": unet.conv_out}

    def run(hidden: Tensor) -> Tensor:
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))  # (B, 4, H/8, W/8)

    return Unit("unet.conv_out", holder(modules), (value,), ("prediction",), run)


def _resnet(units: list[Unit], path: str, resnet: nn.Module, value: str, skip: str | None = None) -> str:
    def run(hidden: Tensor, embedding: Tensor) -> Tensor:
        return resnet(hidden, embedding)

    def run_joined(hidden: Tensor, earlier: Tensor, embedding: Tensor) -> Tensor:
        return resnet(torch.cat([hidden, earlier], dim=1), embedding)

    reads = (value, "unet.time_embedding") if skip is None else (value, skip, "unet.time_embedding")
    units.append(Unit(path, holder({path: resnet}), reads, (path,), run if skip is None else run_joined))
    return path


def _sampler(units: list[Unit], path: str, sampler: nn.Module, value: str) -> str:
    units.append(Unit(path, holder({path: sampler}), (value,), (path,), lambda hidden: sampler(hidden)))
    return path


def _attention(units: list[Unit], path: str, attention: nn.Module, value: str) -> str:
    """A Transformer2DModel: norm and projection to tokens; its transformer blocks; projection back plus the residual."""
    linear = attention.use_linear_projection

    def enter(hidden: Tensor) -> Tensor:
        batch, _, height, width = hidden.shape
        hidden = attention.norm(hidden)
        if not linear:
            hidden = attention.proj_in(hidden)
        hidden = hidden.permute(0, 2, 3, 1).reshape(batch, height * width, -1)  # (B, H W, C)
        return attention.proj_in(hidden) if linear else hidden

    def leave(tokens: Tensor, residual: Tensor) -> Tensor:
        batch, _, height, width = residual.shape
        if linear:
            tokens = attention.proj_out(tokens)
        hidden = tokens.reshape(batch, height, width, -1).permute(0, 3, 1, 2)  # (B, C, H, W), channels last
        if not residual.is_contiguous(memory_format=torch.channels_last):
            hidden = hidden.contiguous()  # as diffusers has it; else all that follows would lose the layout
        return (hidden if linear else attention.proj_out(hidden)) + residual

    def through(block: nn.Module):
        return lambda tokens, text: block(tokens, encoder_hidden_states=text)

    tokens = f"{path}.in"
    modules = {f"{path}.norm": attention.norm, f"{path}.proj_in": attention.proj_in}
    units.append(Unit(tokens, holder(modules), (value,), (tokens,), enter))
    for k, block in enumerate(attention.transformer_blocks):
        name = f"{path}.transformer_blocks.{k}"
        units.append(Unit(name, holder({name: block}), (tokens, "text"), (name,), through(block)))
        tokens = name
    name = f"{path}.out"
    units.append(Unit(name, holder({f"{path}.proj_out": attention.proj_out}), (tokens, value), (name,), leave))
    return name
