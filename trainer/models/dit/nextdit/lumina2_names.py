"""What Lumina's transformer is called in files: the names of its original code, which ComfyUI and diffusers read.

Public files (Comfy-Org's repackaged one, and what is made from it) hold the transformer alone, without a prefix; VAE and text
encoder are files of their own. Queries, keys and values are one matrix there, 2304 + 768 + 768 rows high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

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
    if denoiser is None:
        return []
    path, found = adapter_path(denoiser), {}
    for name, parameter in denoiser.named_parameters():
        inner, _, part = name.rpartition(".")
        found.setdefault(f"{path(inner)}.{part}", []).append((f"transformer.{name}", tuple(parameter.shape)))
    return [_entry(key, members) for key, members in found.items()]


def adapter_path(denoiser: nn.Module) -> Callable[[str], str]:
    """From a module's path in the transformer to the original one, which q, k and v of a block share."""
    paths = dict(NAMES)
    for stack in ("context_refiner", "noise_refiner", "layers"):
        for i in range(len(getattr(denoiser, stack))):
            paths |= {f"{stack}.{i}.{ours}": f"{stack}.{i}.{theirs}" for ours, theirs in BLOCK.items()}
    return lambda path: renamed(path, paths)


def _entry(key: str, members: list[tuple[str, tuple[int, ...]]]) -> Entry:
    names, shapes = zip(*members, strict=True)
    if len(names) == 1:
        return Entry(key, names, shapes[0])
    rows = tuple(shape[0] for shape in shapes)
    return Entry(key, names, (sum(rows), *shapes[0][1:]), "fused", rows)
