"""Stable Diffusion 3.5 medium: 2.2 billion parameters, 1024 pixels, three text encoders of which T5 may be left out.

Noise levels are drawn where the logit of the level is normal, most of them in the middle, and shifted towards noise for
pictures of 1024 pixels (arXiv 2403.03206, sections 3.1 and 5.3.2):

    s = 3 u / (1 + 2 u),  u = sigmoid(z),  z normal

The loss is the velocity's, as in the paper and in diffusers' example with precondition_outputs 0. That example's own default
weighs it by s^2, which its authors found to affect the results badly (diffusers, pull request 9086).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.models.base import Defaults, Names
from trainer.models.dit import sd35_names, sd35_text, sd35_units
from trainer.models.dit.family import Transformer
from trainer.models.sd.family import TINY_TEXT, TINY_VAE
from trainer.objective.noise import Flow

DEFAULTS = Defaults(
    lr_full=1e-5,  # SimpleTuner's page on SD 3: 1e-5 works for all weights and 4e-5 could explode
    lr_full_no_prior=1e-5,
    lr_full_text=1e-5,  # its text encoders are not trained
    lr_lora=1e-4,  # the default of diffusers' examples/dreambooth/train_dreambooth_lora_sd3.py; its README takes 4e-4
    lr_lora_text=1e-4,
    targets=(  # those of the same example
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ),
    steps=800,
    steps_lora=800,
    class_images=200,
    guidance=7.0,  # the pipeline's
)


def schedule(scheduler: Mapping[str, Any], size: tuple[int, int]) -> Flow:
    """Noise levels of pictures of any size: the shift is the scheduler's."""
    return Flow(shift=scheduler.get("shift", 1.0), spread="logit_normal", schedule=scheduler)


def fits(config: Mapping[str, Any]) -> str:
    """What speaks against a joint transformer."""
    channels = config.get("in_channels", 16)
    return "" if channels == 16 else f"its transformer has {channels} input channels, and not 16"


SD35 = Transformer(
    name="sd35",
    title="Stable Diffusion 3.5",
    words=("sd3", "stable-diffusion-3", "3.5-medium"),
    defaults=DEFAULTS,
    pipeline_class="StableDiffusion3Pipeline",
    export_gb=15.9,
    names=Names(
        denoiser="transformer",
        folders={
            "transformer": "transformer",
            "vae": "vae",
            "text": "text_encoder",
            "text_2": "text_encoder_2",
            "text_3": "text_encoder_3",
        },
        index={
            "text_encoder_3": [None, None],
            "tokenizer_3": [None, None],
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
        },
        adapters={"transformer": "lora_transformer"},
        bases=("3-5-medium", "3-5-medium"),  # sd-scripts' word
        architectures=("stable-diffusion-v3.5-medium", "stable-diffusion-v3.5-medium"),  # SwarmUI's
        source="https://github.com/Stability-AI/sd3.5",
        flows=True,
        marked=False,
        kohya=False,
    ),
    denoiser=sd35_units,
    text=sd35_text,
    disk=sd35_names,
    encoders=sd35_text.ENCODERS,
    schedule=schedule,
    fits=fits,
    only_in_folders=("text_encoder_3",),
    small={
        "transformer": {
            "num_layers": 3,
            "dual_attention_layers": [0],
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 96,
            "pooled_projection_dim": 72,  # both CLIPs side by side, 32 + 40
            "pos_embed_max_size": 12,
            "sample_size": 8,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
        "text_encoder_2": TINY_TEXT | {"hidden_size": 48, "projection_dim": 40},
        "text_encoder_3": {"d_ff": 64, "d_kv": 8, "d_model": 96, "num_heads": 4, "num_layers": 3, "vocab_size": 110},
    },
)
