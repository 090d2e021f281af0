"""Lumina Image 2.0: 2.6 billion parameters, 1024 pixels, Gemma-2-2B for the text, Apache licence.

Alpha-VLLM, February 2025; arXiv 2503.21758. Noise levels are drawn as the model's own code draws them in fine-tuning: the middle
more often, shifted towards noise with the number N of the picture's patches, which are hidden by more of it,

    s = shift u / (1 + (shift - 1) u),    u = sigmoid(normal),    shift = e^mu,    mu = 0.5 at N = 256 and 1.15 at N = 4096, linear

diffusers' example for adapters (train_dreambooth_lora_lumina2.py) has the same noisy latents, target and loss at every level, but
reads its scheduler's levels, which are shifted towards noise, as shares of the picture: half of what it draws has less than a
seventh of noise, and nothing is learnt where pictures are begun. Pictures walk down with the scheduler's own shift of 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import Gemma2Model

from trainer.models.base import Defaults, Names
from trainer.models.dit.family import Transformer
from trainer.models.dit.nextdit import lumina2_names, lumina2_text, lumina2_units
from trainer.models.sd.family import TINY_VAE
from trainer.objective.noise import Flow

PATCH = 16  # pixels along the side of a token

DEFAULTS = Defaults(
    lr_full=1e-5,  # a tenth of the adapters': diffusers has no example that trains all of it
    lr_full_no_prior=1e-5,
    lr_full_text=1e-5,  # its text encoder is not trained
    lr_lora=1e-4,  # diffusers' examples/dreambooth README_lumina2
    lr_lora_text=1e-4,
    steps=800,
    steps_lora=500,  # README_lumina2
    class_images=200,
    guidance=4.0,  # the pipeline's
)


def schedule(scheduler: Mapping[str, Any], size: tuple[int, int]) -> Flow:
    """Noise levels of pictures of `size` (width, height)."""
    tokens = (size[0] // PATCH) * (size[1] // PATCH)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return Flow(shift=math.exp(mu), spread="logit_normal", schedule=scheduler, walk=walk)


def walk(steps: int) -> Mapping[str, Any]:
    """As the pipeline walks: the last step begins at 1 / n, before the scheduler's shift."""
    return {"sigmas": [1 - i / steps for i in range(steps)]}


def fits(config: Mapping[str, Any]) -> str:
    """What speaks against a transformer of Lumina."""
    channels = config.get("in_channels", 16)
    return "" if channels == 16 else f"it has {channels} input channels"


LUMINA2 = Transformer(
    name="lumina2",
    title="Lumina Image 2.0",
    words=("lumina",),
    defaults=DEFAULTS,
    pipeline_class="Lumina2Pipeline",
    export_gb=10.6,
    names=Names(
        denoiser="transformer",
        folders={"transformer": "transformer", "vae": "vae", "text": "text_encoder"},
        index={},
        adapters={"transformer": "lora_unet"},
        bases=("lumina2", "lumina2"),  # kohya's word
        architectures=("lumina-2", "lumina-2"),
        source="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        flows=True,
        marked=False,
        kohya=False,
    ),
    denoiser=lumina2_units,
    text=lumina2_text,
    disk=lumina2_names,
    encoders={"text_encoder": Gemma2Model},
    schedule=schedule,
    fits=fits,
    pipelines_before=("Lumina2Text2ImgPipeline",),  # in diffusers 0.33, and in the public model
    small={
        "transformer": {
            "sample_size": 8,
            "hidden_size": 24,
            "num_layers": 2,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": [4, 2, 2],
            "cap_feat_dim": 32,
        },
        "vae": TINY_VAE,
        "text_encoder": {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 20,
        },
    },
)
