"""Stable Diffusion 1.x: 860 million parameters, 512 pixels, CLIP ViT-L/14 text, epsilon prediction.

https://github.com/CompVis/stable-diffusion; arXiv 2112.10752. The reference family: its defaults are the ones
DreamBooth (arXiv 2208.12242) is usually run with.
"""

from dataclasses import replace

from trainer.models.base import Defaults
from trainer.models.sd.family import NAMES, TINY_TEXT, TINY_VAE, StableDiffusion

DEFAULTS = Defaults(
    lr_full=2e-6,  # diffusers' examples/dreambooth README, fine-tuning with prior preservation and few subjects' photos
    lr_full_no_prior=5e-6,  # the same README's rate for training without prior preservation
    lr_full_text=1e-6,  # half of lr_full: the text encoder forgets its words first
    lr_lora=1e-4,  # the same README, LoRA
    lr_lora_text=5e-5,  # kohya-ss' customary half of the denoiser's rate
    steps=800,  # the paper trains about 1000 iterations with 3 to 5 photos; the README 800 with prior preservation
    steps_lora=800,
    class_images=200,  # the README, "num_epochs * num_samples"; 200 to 300 works for most cases
)

SD1 = StableDiffusion(
    name="sd1",
    title="Stable Diffusion 1.x",
    words=("stable-diffusion-v1", "sd1", "sd-1"),
    resolution=512,
    defaults=DEFAULTS,
    folder="sd1",
    pads=("<|endoftext|>",),
    pipeline_class="StableDiffusionPipeline",
    export_gb=2.1,
    small={
        "unet": {
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "sample_size": 8,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
    },
)

# The built-in model: the layout of SD 1.x, a few million parameters, 64 pixels. It is small enough to move fast, so its
# rates are those of a small network, not of a large pretrained one.
DEMO = replace(
    SD1,
    name="demo",
    title="a small Stable Diffusion 1.x, like the built-in demo",
    resolution=64,
    export_gb=0.05,
    names=replace(NAMES, known=False),
    defaults=Defaults(  # tried on the built-in subjects, looked at (benchmarks/NOTES.md)
        lr_full=4e-4,
        lr_full_no_prior=4e-4,
        lr_full_text=5e-4,
        lr_lora=2e-3,
        lr_lora_text=1e-3,
        lr_text=1e-3,
        steps=300,
        steps_lora=300,
        class_images=16,
        rank=8,
    ),
)
