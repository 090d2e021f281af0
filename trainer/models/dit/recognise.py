"""Which transformer a model is, told from its configurations or from the names in a checkpoint's header.

What is none of the families is refused by what it is instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer.errors import ConfigError
from trainer.models.dit.family import Transformer
from trainer.models.dit.klein import KLEIN
from trainer.models.dit.nextdit.lumina2 import LUMINA2
from trainer.models.dit.nextdit.zimage import ZIMAGE
from trainer.models.dit.sd35 import SD35
from trainer.models.sound import WHAT_WORKS

FAMILIES: tuple[Transformer, ...] = (SD35, KLEIN, LUMINA2, ZIMAGE)
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")  # folders that hold weights
# what keys of transformers begin with in single files, behind ComfyUI's prefix or without it
BLOCKS = ("double_blocks.", "joint_blocks.", "transformer_blocks.", "context_refiner.")
BEFORE = "model.diffusion_model."


def require_pipeline(source: str, index: Mapping[str, Any]) -> None:
    """Refuse a folder of diffusers whose model_index.json names another pipeline than the families'."""
    kind = index.get("_class_name", "pipeline of another kind")
    known = {name for family in FAMILIES for name in (family.pipeline_class, *family.pipelines_before)}
    if {"vae", "text_encoder"} - index.keys() or kind not in known:
        raise ConfigError(f"{source} is a {kind}, which is of no family that is known here", WHAT_WORKS)
    if index.get("is_distilled"):
        raise ConfigError(
            f"{source} is distilled to draw in a few steps without guidance, which training would undo",
            "take the base model that it was made from, such as FLUX.2-klein-base-4B",
        )


def by_configuration(source: str, configs: Mapping[str, Any]) -> Transformer:
    """The family of a model whose parts' configurations are known; ConfigError says what the thing is instead."""
    config = configs["transformer"]
    kind = config.get("_class_name", "transformer of an unnamed class")
    found = next((family for family in FAMILIES if family.denoiser.CLASS.__name__ == kind), None)
    if found is None:
        raise ConfigError(
            f"the transformer of {source} is a {kind}, which is of no family that is known here", WHAT_WORKS
        )
    if against := found.fits(config):
        raise ConfigError(f"{source} is not {found.title}: {against}", WHAT_WORKS)
    return found


def among(names: Iterable[str]) -> bool:
    """Whether a file with these tensors holds a transformer."""
    return any(name.removeprefix(BEFORE).startswith(BLOCKS) for name in names)


def by_tensors(source: str, names: Mapping[str, tuple[str, Any]]) -> Transformer:
    """The family of a single file; ConfigError where it is another's, or holds no more than the transformer."""
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise ConfigError(f"{source} is an adapter (LoRA), not a model", "name the model that it was made for")
    found = next((family for family in FAMILIES if family.disk.MARK in names), None)
    if found is None:
        raise ConfigError(
            f"{source} is a diffusion transformer (Flux, SD 3 or the like) of no family that is known here", WHAT_WORKS
        )
    if not any("text_encoder" in name or name.startswith("conditioner.") for name in names):
        raise ConfigError(
            f"{source} holds the transformer of {found.title} alone, without text encoder and VAE",
            "name the diffusers folder of the model",
        )
    return found


def scheduled(source: str, scheduler: Mapping[str, Any]) -> str:
    """What a scheduler's configuration says that the denoiser predicts: all of these match flows."""
    kind = scheduler.get("_class_name", "")
    if not kind.startswith("FlowMatch"):
        raise ConfigError(f"{source} has a scheduler that is unknown for its kind ({kind})", WHAT_WORKS)
    return "flow"
