"""Stable Diffusion XL: 2.6 billion parameters, 1024 pixels, two text encoders, conditioning on sizes and crops.

arXiv 2307.01952. The time embedding also carries the second encoder's pooled text and the six numbers (original size,
crop corner, target size), so a small photo does not teach the model blur.
"""

from dataclasses import replace

from trainer.models.base import Defaults
from trainer.models.sd.family import NAMES, TINY_TEXT, TINY_VAE, StableDiffusion

DEFAULTS = Defaults(
    lr_full=1e-6,  # diffusers' examples/text_to_image README_sdxl, full fine-tuning
    lr_full_no_prior=2e-6,  # twice that, in the middle of 1.x's ratio of 2.5 and none
    lr_full_text=4e-7,  # the rate SDXL itself was trained with at the end (kohya-ss' sd-scripts, SDXL page)
    lr_lora=1e-4,  # diffusers' examples/dreambooth README_sdxl
    lr_lora_text=5e-5,
    steps=800,
    steps_lora=800,
    class_images=200,
)

SDXL = StableDiffusion(
    name="sdxl",
    title="Stable Diffusion XL",
    words=("xl",),
    resolution=1024,
    defaults=DEFAULTS,
    folder="sdxl",
    pads=("<|endoftext|>", "!"),
    pipeline_class="StableDiffusionXLPipeline",
    export_gb=6.9,
    names=replace(
        NAMES,
        index={
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
            "force_zeros_for_empty_prompt": True,
        },
        adapters={"unet": "lora_unet", "text": "lora_te1", "text_2": "lora_te2"},
        bases=("sdxl_base_v1-0", "sdxl_base_v1-0"),
        architectures=("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base"),
        source="https://github.com/Stability-AI/generative-models",
        marked=True,
    ),
    small={
        "unet": {
            "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 80,  # both encoders side by side, 32 + 48
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 88,  # 40 pooled + 6 * 8
            "sample_size": 8,
        },
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT,
        "text_encoder_2": TINY_TEXT | {"hidden_size": 48, "projection_dim": 40},  # as wide as no other
    },
)
