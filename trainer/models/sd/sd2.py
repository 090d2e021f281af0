"""Stable Diffusion 2.x: the UNet of 1.x with linear projections and OpenCLIP ViT-H/14 text (23 of its 24 layers).

Two kinds share the layout: "base" predicts epsilon at 512 pixels, the other predicts v at 768
(https://github.com/Stability-AI/stablediffusion); the scheduler's configuration says which.
"""

from dataclasses import replace

from trainer.models.base import Defaults
from trainer.models.sd.family import NAMES, TINY_TEXT, TINY_VAE, StableDiffusion

DEFAULTS = Defaults(
    lr_full=2e-6,  # as for 1.x: the same UNet, and diffusers' DreamBooth README uses one rate for both
    lr_full_no_prior=5e-6,  # as for 1.x
    lr_full_text=1e-6,  # as for 1.x
    lr_lora=1e-4,  # diffusers' README, LoRA
    lr_lora_text=5e-5,  # as for 1.x
    steps=800,
    steps_lora=800,
    class_images=200,
)

SD2 = StableDiffusion(
    name="sd2",
    title="Stable Diffusion 2.x",
    words=("stable-diffusion-2", "sd2", "sd-2"),
    resolution=768,
    defaults=DEFAULTS,
    folder="sd2",
    pads=("!",),
    pipeline_class="StableDiffusionPipeline",
    export_gb=2.6,
    names=replace(
        NAMES,
        bases=("sd_v2", "sd_v2_v"),
        architectures=("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
        source="https://github.com/Stability-AI/stablediffusion",
        velocities=True,
        marked=True,
    ),
    small={
        "unet": {
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "cross_attention_dim": 32,
            "attention_head_dim": [2, 4],
            "sample_size": 8,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
    },
)
