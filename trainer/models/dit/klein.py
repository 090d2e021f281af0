"""FLUX.2 klein base, 4 billion parameters: 1024 pixels, Qwen3-4B for the text, Apache licence.

Black Forest Labs, January 2026. The base model, which is guided by a second prediction without the prompt, not the one distilled
from it for four steps, whose shortcut training would undo. Training draws noise levels evenly, as diffusers' example does;
pictures walk down on a schedule that is shifted towards noise with the number of the picture's tokens and of steps,

    s = e^mu t / (1 + (e^mu - 1) t),    t = 1, (n - 1) / n, .. 1 / n
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKLFlux2
from transformers import Qwen3ForCausalLM

from trainer.models.base import Defaults, Names
from trainer.models.dit import klein_names, klein_text, klein_units
from trainer.models.dit.family import Transformer
from trainer.models.sd.family import TINY_VAE
from trainer.objective.noise import Flow

PIXELS = 16  # along the side of a token

DEFAULTS = Defaults(
    lr_full=1e-5,  # a tenth of the adapters': diffusers has no example that trains all of klein
    lr_full_no_prior=1e-5,
    lr_full_text=1e-5,  # its text encoder is not trained
    lr_lora=1e-4,  # diffusers' examples/dreambooth README_flux2, klein
    lr_lora_text=1e-4,
    # the example's: attention of all blocks, in single blocks with their MLP, which is in the same matrices
    targets=("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"),
    steps=800,
    steps_lora=500,  # README_flux2
    class_images=200,
    guidance=4.0,  # the pipeline's, and the model card's
)


def schedule(scheduler: Mapping[str, Any], size: tuple[int, int]) -> Flow:
    """Noise levels of pictures of `size` (width, height)."""
    tokens = (size[0] // PIXELS) * (size[1] // PIXELS)

    def walk(steps: int) -> Mapping[str, Any]:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        levels = [1 - i / steps for i in range(steps)]
        return {"sigmas": levels, "mu": compute_empirical_mu(tokens, steps)}

    return Flow(schedule=scheduler, walk=walk)


def fits(config: Mapping[str, Any]) -> str:
    """What speaks against a transformer of FLUX.2."""
    if config.get("guidance_embeds", True):  # diffusers' own default
        return "its guidance is distilled into it, as in FLUX.2 [dev]"
    return ""


KLEIN = Transformer(
    name="klein",
    title="FLUX.2 klein base",
    words=("klein", "flux.2", "flux2"),
    defaults=DEFAULTS,
    pipeline_class="Flux2KleinPipeline",
    export_gb=16.0,
    names=Names(
        denoiser="transformer",
        folders={"transformer": "transformer", "vae": "vae", "text": "text_encoder"},
        index={"is_distilled": False},
        adapters={"transformer": "lora_unet"},
        bases=("flux_2_klein_4b", "flux_2_klein_4b"),  # musubi-tuner's word
        architectures=("flux-2-klein-base-4b", "flux-2-klein-base-4b"),
        source="https://github.com/black-forest-labs/flux2",
        flows=True,
        marked=False,
    ),
    denoiser=klein_units,
    text=klein_text,
    disk=klein_names,
    encoders={"text_encoder": Qwen3ForCausalLM},
    schedule=schedule,
    fits=fits,
    told=klein_units.answer,
    vae=AutoencoderKLFlux2,
    small={
        "transformer": {
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 32,
            "joint_attention_dim": 48,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": [4, 4, 4, 4],
        },
        "vae": TINY_VAE | {"latent_channels": 8},
        "text_encoder": {
            "vocab_size": 320,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 28,  # the last that is read is the 27th
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "bos_token_id": 299,
            "eos_token_id": 301,
        },
    },
)
