"""Z-Image, the base model: 6.2 billion parameters, 1024 pixels, Qwen3-4B for the text, Apache licence.

Alibaba's Tongyi lab, January 2026; arXiv 2511.22699. The base model, which is guided by a second prediction without the prompt, not
Turbo, distilled from it for eight steps, whose shortcut training would undo: the two share every shape, and differ in their
scheduler's shift, 6 and 3. Noise levels are drawn from the scheduler's own evenly, as diffusers' example draws them,

    s = shift u / (1 + (shift - 1) u),    u uniform

and pictures walk down the same levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Qwen3Model

from trainer.models.base import Defaults, Names
from trainer.models.dit.family import Transformer
from trainer.models.dit.nextdit import zimage_names, zimage_text, zimage_units
from trainer.models.sd.family import TINY_VAE
from trainer.objective.noise import Flow

DEFAULTS = Defaults(
    lr_full=1e-5,  # a tenth of the adapters': diffusers has no example that trains all of it
    lr_full_no_prior=1e-5,
    lr_full_text=1e-5,  # its text encoder is not trained
    lr_lora=1e-4,  # diffusers' examples/dreambooth README_z_image
    lr_lora_text=1e-4,
    steps=800,
    steps_lora=500,  # README_z_image
    class_images=200,
    guidance=6.0,  # the pipeline's 5, which it counts from the guided prediction
)


def schedule(scheduler: Mapping[str, Any], size: tuple[int, int]) -> Flow:
    """Noise levels of pictures, of any `size` the same."""
    return Flow(shift=scheduler.get("shift", 1.0), schedule=scheduler, walk=walk)


def walk(steps: int) -> Mapping[str, Any]:
    """As the pipeline walks: the last step begins at 1 / n, before the scheduler's shift."""
    return {"sigmas": torch.linspace(1.0, 1 / steps, steps).tolist()}


def fits(config: Mapping[str, Any]) -> str:
    """What speaks against a transformer of Z-Image."""
    if config.get("siglip_feat_dim") is not None:
        return "it reads pictures, too, as Z-Image-Omni does"
    if (channels := config.get("in_channels", 16)) != 16:
        return f"it has {channels} input channels"
    return "" if 2 in config.get("all_patch_size", [2]) else "its patches are not two by two"


ZIMAGE = Transformer(
    name="zimage",
    title="Z-Image",
    words=("z-image", "zimage", "z_image"),
    defaults=DEFAULTS,
    pipeline_class="ZImagePipeline",
    export_gb=20.5,
    names=Names(
        denoiser="transformer",
        folders={"transformer": "transformer", "vae": "vae", "text": "text_encoder"},
        index={},
        adapters={"transformer": "lora_unet"},
        bases=("zimage", "zimage"),
        architectures=("z-image", "z-image"),
        source="https://github.com/Tongyi-MAI/Z-Image",
        flows=True,
        marked=False,
    ),
    denoiser=zimage_units,
    text=zimage_text,
    disk=zimage_names,
    encoders={"text_encoder": Qwen3Model},
    schedule=schedule,
    fits=fits,
    small={
        "transformer": {
            "dim": 24,
            "n_layers": 2,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 32,
            "axes_dims": [4, 2, 2],
        },
        "vae": TINY_VAE,
        "text_encoder": {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "bos_token_id": 299,
            "eos_token_id": 301,
        },
    },
)
