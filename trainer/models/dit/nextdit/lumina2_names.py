"""What Lumina's transformer is called in files, where diffusers calls it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from trainer.models.dit.nextdit import names
from trainer.models.sd.ldm import Entry, renamed

MARK = "layers.0.adaLN_modulation.1.weight"  # Z-Image has no activation before it, and so a 0
NAMES = {
    "time_caption_embed.caption_embedder": "cap_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
BLOCK = {
    "attn.to_q": "attention.qkv",
    "attn.to_k": "attention.qkv",
    "attn.to_v": "attention.qkv",
    "attn.to_out.0": "attention.out",
    "attn.norm_q": "attention.q_norm",
    "attn.norm_k": "attention.k_norm",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
    "norm1": "attention_norm1",
    "norm1.norm": "attention_norm1",  # where the block knows the time
    "norm1.linear": "adaLN_modulation.1",
    "norm2": "attention_norm2",
}


def layout(modules: Mapping[str, nn.Module]) -> list[Entry]:
    """The entries of a file with the transformer's tensors; the other parts are in none."""
    denoiser = modules.get("transformer")
    return [] if denoiser is None else names.layout(denoiser, _paths(denoiser))


def adapter_path(denoiser: nn.Module) -> Callable[[str], str]:
    """From a module's path in the transformer to the original one, which q, k and v of a block share."""
    paths = _paths(denoiser)
    return lambda path: renamed(path, paths)


def _paths(denoiser: nn.Module) -> dict[str, str]:
    return NAMES | names.in_blocks(denoiser, BLOCK)
