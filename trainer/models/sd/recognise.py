"""Which Stable Diffusion a model is, told from its configurations or from the names and shapes in a checkpoint's header.

What is none is refused by what it is instead: an inpainting model, the refiner, an adapter, one part of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.models.sd.family import StableDiffusion
from trainer.models.sd.ldm import UNET
from trainer.models.sd.sd1 import DEMO, SD1
from trainer.models.sd.sd2 import SD2
from trainer.models.sd.sdxl import SDXL
from trainer.models.sound import WHAT_WORKS

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")  # folders of a pipeline that hold weights
Tensors = Mapping[str, tuple[str, Any]]  # of a file's header: name -> (dtype, shape)


def require_pipeline(source: str, index: dict[str, Any]) -> None:
    """Refuse a folder of diffusers whose model_index.json names no text-to-image pipeline of these parts."""
    if {"unet", "vae", "text_encoder"} - index.keys():
        raise ConfigError(
            f"{source} is a {index.get('_class_name', 'pipeline of another kind')}, which has no text-conditioned UNet of latents",
            WHAT_WORKS,
        )
    if "Inpaint" in index.get("_class_name", "") or "Upscale" in index.get("_class_name", ""):
        raise ConfigError(f"{source} is a {index['_class_name']}, not a text-to-image model", WHAT_WORKS)


def by_configuration(source: str, configs: dict[str, Any]) -> StableDiffusion:
    """The family of a model whose parts' configurations are known; ConfigError says what the thing is instead."""
    unet = configs["unet"]
    if unet.get("in_channels") != 4 or unet.get("out_channels") != 4:
        kind = (
            "an inpainting model"
            if unet.get("in_channels") == 9
            else f"a model with {unet.get('in_channels')} input channels"
        )
        raise ConfigError(f"{source} is {kind}", WHAT_WORKS)
    if unet.get("class_embed_type") or unet.get("num_class_embeds") or unet.get("encoder_hid_dim_type"):
        raise ConfigError(
            f"the UNet of {source} has conditions that are unknown here (class_embed_type, encoder_hid_dim_type)",
            WHAT_WORKS,
        )
    if unet.get("addition_embed_type") == "text_time":
        if unet.get("cross_attention_dim") == 1280:
            raise ConfigError(
                f"{source} is the SDXL refiner, which has only one text encoder", "train the SDXL base model"
            )
        return SDXL
    if unet.get("addition_embed_type"):
        raise ConfigError(f"the UNet of {source} has addition_embed_type {unet['addition_embed_type']!r}", WHAT_WORKS)
    if unet.get("use_linear_projection"):
        return SD2
    # The public 1.x models are 320 channels wide. A narrower one is the built-in demo model or its offspring.
    return SD1 if unet["block_out_channels"][0] >= 320 else DEMO


def by_tensors(source: str, names: Tensors) -> StableDiffusion:
    """The family of an original checkpoint, from its key names and shapes; ConfigError says what the thing is instead."""
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise ConfigError(f"{source} is an adapter (LoRA), not a model", "name the model that it was made for")
    if any(name.startswith(("down_blocks.", "encoder.down_blocks.", "text_model.")) for name in names):
        raise ConfigError(f"{source} is one part of a diffusers folder", "name the folder that holds model_index.json")
    if f"{UNET}input_blocks.0.0.weight" not in names:
        raise ConfigError(f"{source} holds no Stable Diffusion UNet (no {UNET}... tensors)", WHAT_WORKS)
    channels = names[f"{UNET}input_blocks.0.0.weight"][1][1]
    if channels != 4:
        kind = "an inpainting model" if channels == 9 else f"a model with {channels} input channels"
        raise ConfigError(f"{source} is {kind}", WHAT_WORKS)
    widths = {
        shape[1] for name, (_, shape) in names.items() if name.endswith("attn2.to_k.weight") and name.startswith(UNET)
    }
    families = {768: SD1, 1024: SD2, 2048: SDXL}
    if len(widths) != 1 or not widths <= families.keys():
        kind = "the SDXL refiner" if widths == {1280} else f"a UNet with text width {sorted(widths)}"
        raise ConfigError(f"{source} is {kind}", WHAT_WORKS)
    return families[widths.pop()]


def scheduled(source: str, scheduler: Mapping[str, Any]) -> str:
    """What a scheduler's configuration says that the denoiser predicts."""
    kind, betas = scheduler.get("_class_name", ""), scheduler.get("beta_schedule")
    if scheduler.get("use_flow_sigmas") or (kind.startswith("FlowMatch") and not scheduler.get("use_dynamic_shifting")):
        return "flow"
    prediction = scheduler.get("prediction_type", "epsilon")
    if betas not in ("scaled_linear", "linear") or prediction not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"{source} has a noise schedule or prediction that is unknown here ({kind}, {betas}, {prediction})",
            WHAT_WORKS,
        )
    return prediction


def prediction_by_weights(found: StableDiffusion, path: Path, names: Tensors) -> tuple[str, str]:
    """What a checkpoint without a word on it predicts, and what says so."""
    if found is SD2:
        return _sd2_prediction(path, names), "the weights (a guess; set model.prediction_type if it is wrong)"
    return "epsilon", f"the custom of {found.title}"


def base_is_smaller(found: StableDiffusion, prediction: str, configs: dict[str, Any]) -> None:
    """Of SD 2.x the base model draws 512 pixels; the family's configuration is that of 2.1, which predicts v, at 768."""
    if found is SD2 and prediction == "epsilon":
        configs["unet"]["sample_size"] = min(configs["unet"]["sample_size"], 64)


def _sd2_prediction(path: Path, names: Tensors) -> str:
    """The two kinds of SD 2.x share every shape. In the v models the biases of the last transformer block's first norm
    are spread wider: standard deviation above 0.09, the limit that ComfyUI uses."""
    from safetensors import safe_open

    name = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name not in names:
        return "v_prediction" if "768" in path.name or "-v" in path.name else "epsilon"
    with safe_open(path, "pt") as file:
        return "v_prediction" if file.get_tensor(name).float().std(unbiased=False) > 0.09 else "epsilon"
