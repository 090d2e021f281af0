"""What Stable Diffusion 3.5 is called in single files: Stability AI's names, which ComfyUI and diffusers read.

A joint block is an x_block and a context_block there, each with q, k and v in one matrix; where diffusers has scale before
shift, in the last norm of either, the original has shift before scale. The text encoders keep transformers' names. Adapters
go under diffusers' module paths, as OneTrainer writes and ComfyUI reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from trainer.models.sd import ldm
from trainer.models.sd.ldm import Entry, renamed

PLACE = "model.diffusion_model."
MARK = f"{PLACE}joint_blocks.0.x_block.attn2.qkv.weight"  # 3 and 3.5 large attend once
TEXT = {
    "text": "text_encoders.clip_l.transformer.",
    "text_2": "text_encoders.clip_g.transformer.",
    "text_3": "text_encoders.t5xxl.transformer.",
}
NAMES = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
BLOCK = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_k": "x_block.attn.qkv",
    "attn.to_v": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_k": "x_block.attn2.qkv",
    "attn2.to_v": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
PLACES = "pos_embed.pos_embed"  # a table that is in files, and not trained
ORDER = ("to_q", "add_q", "to_k", "add_k", "to_v", "add_v")  # inside a fused matrix


def layout(modules: Mapping[str, nn.Module]) -> list[Entry]:
    """The entries of a single file with these parts."""
    entries = _denoiser(modules["transformer"]) if "transformer" in modules else []
    if "vae" in modules:
        entries += ldm.layout({"vae": modules["vae"]}, "sd35")
    for part, place in TEXT.items():
        if part in modules:
            entries += [
                Entry(place + name, (f"{part}.{name}",), tuple(parameter.shape))
                for name, parameter in modules[part].named_parameters()
            ]
    return entries


def adapter_path(denoiser: nn.Module) -> Callable[[str], str]:
    return lambda path: path


def _denoiser(denoiser: nn.Module) -> list[Entry]:
    blocks = len(denoiser.transformer_blocks)
    paths = NAMES | {
        f"transformer_blocks.{i}.{ours}": f"joint_blocks.{i}.{theirs}"
        for i in range(blocks)
        for ours, theirs in BLOCK.items()
    }
    swapped = ("final_layer.adaLN", f"joint_blocks.{blocks - 1}.context_block.adaLN")
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    tensors = dict(denoiser.named_parameters()) | {PLACES: denoiser.get_buffer(PLACES)}
    for name, tensor in tensors.items():
        found.setdefault(renamed(name, paths), []).append((f"transformer.{name}", tuple(tensor.shape)))
    return [_entry(key, members, key.startswith(swapped)) for key, members in found.items()]


def _entry(key: str, members: list[tuple[str, tuple[int, ...]]], swapped: bool) -> Entry:
    if len(members) == 1:
        name, shape = members[0]
        return Entry(PLACE + key, (name,), shape, "halves" if swapped else "same")
    members = sorted(members, key=lambda member: next(i for i, word in enumerate(ORDER) if f".{word}" in member[0]))
    rows, *rest = members[0][1]
    return Entry(PLACE + key, tuple(name for name, _ in members), (rows * len(members), *rest), "fused")
