"""What Z-Image's transformer is called in files, where diffusers calls it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from trainer.models.dit.nextdit import names
from trainer.models.sd.ldm import Entry, renamed

MARK = "cap_pad_token"
NAMES = {"all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1": "final_layer"}
BLOCK = {
    "attention.to_q": "attention.qkv",
    "attention.to_k": "attention.qkv",
    "attention.to_v": "attention.qkv",
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
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
