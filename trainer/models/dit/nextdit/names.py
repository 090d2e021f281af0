"""What the transformers are called in files: the names of Lumina's original code, which ComfyUI and diffusers read for both.

Public files (Comfy-Org's repackaged ones, and what is made from them) hold the transformer alone, without a prefix; VAE and text
encoder are files of their own. Queries, keys and values are one matrix there, of Lumina 2304 + 768 + 768 rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from trainer.models.sd.ldm import Entry, renamed


def layout(denoiser: nn.Module, paths: Mapping[str, str]) -> list[Entry]:
    """The entries of a file with the transformer's tensors; `paths`: modules by their names here, in the file."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, parameter in denoiser.named_parameters():
        inner, _, part = name.rpartition(".")
        key = f"{renamed(inner, paths)}.{part}" if inner else part
        found.setdefault(key, []).append((f"transformer.{name}", tuple(parameter.shape)))
    return [_entry(key, members) for key, members in found.items()]


def in_blocks(denoiser: nn.Module, inside: Mapping[str, str]) -> dict[str, str]:
    """`inside`, names within a block, as names within the transformer, for every block that it has."""
    stacks = {stack: len(getattr(denoiser, stack)) for stack in ("context_refiner", "noise_refiner", "layers")}
    return {
        f"{stack}.{i}.{ours}": f"{stack}.{i}.{theirs}"
        for stack, count in stacks.items()
        for i in range(count)
        for ours, theirs in inside.items()
    }


def _entry(key: str, members: list[tuple[str, tuple[int, ...]]]) -> Entry:
    names, shapes = zip(*members, strict=True)
    if len(names) == 1:
        return Entry(key, names, shapes[0])
    rows = tuple(shape[0] for shape in shapes)
    return Entry(key, names, (sum(rows), *shapes[0][1:]), "fused", rows)
