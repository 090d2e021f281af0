"""What FLUX.2's transformer is called in files: the names of Black Forest Labs, which ComfyUI and diffusers read.

Public files of klein hold the transformer alone, without a prefix; VAE and text encoder are files of their own. A double block's
q, k and v are one matrix there, for picture and text, and the last layer's shift comes before its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from trainer.models.sd.ldm import Entry, renamed

MARK = "double_stream_modulation_img.lin.weight"
NAMES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}


def layout(modules: Mapping[str, nn.Module]) -> list[Entry]:
    """The entries of a file with the transformer's tensors; the other parts are in none."""
    denoiser = modules.get("transformer")
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    path = adapter_path(denoiser) if denoiser is not None else str
    for name, parameter in denoiser.named_parameters() if denoiser is not None else ():
        inner, _, part = name.rpartition(".")
        part = "scale" if ".norm_" in name else part
        found.setdefault(f"{path(inner)}.{part}", []).append((f"transformer.{name}", tuple(parameter.shape)))
    return [_entry(key, members) for key, members in found.items()]


def adapter_path(denoiser: nn.Module) -> Callable[[str], str]:
    """From a module's path in the transformer to the original one, which q, k and v of a double block share."""
    paths = dict(NAMES)
    for blocks, theirs, inside in (
        ("transformer_blocks", "double_blocks", DOUBLE),
        ("single_transformer_blocks", "single_blocks", SINGLE),
    ):
        for i in range(len(getattr(denoiser, blocks))):
            paths |= {f"{blocks}.{i}.{ours}": f"{theirs}.{i}.{other}" for ours, other in inside.items()}
    return lambda path: renamed(path, paths)


def _entry(key: str, members: list[tuple[str, tuple[int, ...]]]) -> Entry:
    names, ((rows, *rest), *_) = tuple(name for name, _ in members), [shape for _, shape in members]
    kind = "fused" if len(names) > 1 else "halves" if "adaLN" in key else "same"
    return Entry(key, names, (rows * len(names), *rest), kind)
