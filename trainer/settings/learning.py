"""The knobs of learning: what holds on to the class and the rest, how training goes, and adapters."""

from __future__ import annotations

from typing import Literal

from trainer.settings.knob import Section, knob


class Prior(Section):
    """Prior preservation: keeping the class alive"""

    with_prior_preservation: bool | None = knob(
        None, "train on class pictures beside the photos; default on for full fine-tuning where a class is named"
    )
    by: Literal["images", "prediction", "dco"] = knob(
        "images",
        "class images made by the base model; its cached predictions on noised class latents; or DCO, with its cached losses on "
        "the photos (and on class images with with_prior_preservation)",
    )
    temperature: float = knob(
        1e-3,
        "of DCO: how much better than the base model a picture is learned before it stops to pull; larger learns more",
        gt=0,
    )
    class_data_dir: str | None = knob(
        None,
        "folder of class images: your own are used whole; without any, it is filled with generated ones",
    )
    class_prompt: str | None = knob(None, "prompt of the class images; default 'a photo of a {class_name}'")
    num_class_images: int | None = knob(
        None,
        "how many class images there must be; default by family (200), or those of your own",
        ge=1,
        le=100_000,
    )
    class_seed: int | None = knob(
        None, "seed of generated class images; default their folder's, else 0", gt=-(2**32), lt=2**32
    )
    prior_loss_weight: float = knob(1.0, "weight of the class half of the loss", ge=0, le=1000)
    others: float = knob(
        0.0,
        "share of the class half for pictures of other prompts, so that these stay, too; drawn beside the class images",
        ge=0,
        le=0.9,
    )
    others_prompts: str | None = knob(None, "text file with those prompts, one a line; default a broad list that ships")
    contrast: float = knob(
        0.0,
        "of prior by prediction: share of the class's latents that are the photos, read with the class prompt, so that only the "
        "identifier tells the subject",
        ge=0,
        le=1,
    )
    anchor: float = knob(
        0.0,
        "share of the way back to the base model's weights after each update, at the full rate; 0.003 is mild",
        ge=0,
        le=1,
    )
    sample_batch_size: int | None = knob(None, "class images generated at once; default what the budget holds", ge=1)
    sample_steps: int = knob(50, "denoising steps of a class image", ge=1)
    guidance_scale: float = knob(7.5, "classifier-free guidance of class images", ge=1)


class Train(Section):
    """Training"""

    method: Literal["full", "lora", "dora"] = knob("full", "full fine-tuning, or adapters through peft")
    train_text_encoder: bool = knob(False, "train the text encoder too")
    text_part: Literal["all", "identifier"] = knob(
        "all",
        "what learns with train_text_encoder: all of it, or the identifier's embedding alone (pivotal tuning; `explain word`)",
    )
    text_encoder_lr: float | None = knob(
        None, "rate of the text encoder; default learning_rate if set, else by family", "learning_rate_te", ge=0
    )
    text_encoder_2_lr: float | None = knob(
        None, "learning rate of SDXL's second text encoder; default the first's", ge=0
    )
    text_encoder_stop_step: int | None = knob(
        None, "stop training the text encoder after this step", "stop_text_encoder_training", ge=1
    )
    max_train_steps: int | None = knob(None, "optimizer steps; default by family (800)", ge=1, le=10_000_000)
    num_train_epochs: int | None = knob(
        None, "passes over the photos, instead of max_train_steps", "max_train_epochs", ge=1, le=1_000_000
    )
    train_batch_size: int = knob(
        1, "photos in a micro-batch; with prior preservation as many class images again", ge=1, le=1024
    )
    gradient_accumulation_steps: int = knob(1, "micro-batches in an optimizer step", ge=1, le=4096)
    learning_rate: float | None = knob(None, "default by family and method", "lr", gt=0)
    scale_lr: bool = knob(False, "multiply the learning rate by batch size and accumulation")
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = knob("constant", "schedule, from diffusers")
    lr_warmup_steps: int = knob(0, "steps of linear warm-up", ge=0)
    lr_warmup_share: float = knob(0.0, "warm-up as a share of all steps, instead of lr_warmup_steps", ge=0, lt=1)
    lr_num_cycles: int = knob(1, "restarts of cosine_with_restarts", "lr_scheduler_num_cycles", ge=1)
    lr_power: float = knob(1.0, "power of the polynomial schedule", "lr_scheduler_power", gt=0)
    optimizer: Literal["adamw", "torch_adamw", "bnb_adamw8bit", "bnb_paged_adamw8bit", "adafactor", "prodigy"] = knob(
        "adamw", "adamw is ours: fused, one pass, moments and weights as [memory] says"
    )
    adam_beta1: float = knob(0.9, "decay of the first moment", ge=0, lt=1)
    adam_beta2: float = knob(0.999, "decay of the second moment", ge=0, lt=1)
    adam_weight_decay: float = knob(1e-2, "decoupled weight decay", ge=0)
    adam_epsilon: float = knob(1e-8, "added to the root of the second moment", gt=0)
    max_grad_norm: float = knob(1.0, "clip the global gradient norm to this; 0 is off", ge=0)
    clipping: Literal["exact", "previous"] = knob(
        "exact", "clip by this step's norm, or (approximate, cheaper) by the previous step's"
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = knob(
        "auto", "precision of the computation; auto is bf16 (fp16 before Ampere) on a GPU, fp32 on a CPU"
    )
    snr_gamma: float | None = knob(None, "min-SNR loss weights (arXiv 2303.09556); 5 is usual", "min_snr_gamma", gt=0)
    offset_noise: float = knob(0.0, "strength of offset noise", "noise_offset", ge=0)
    zero_terminal_snr: bool = knob(
        False, "rescale the schedule to zero terminal SNR (arXiv 2305.08891)", "zero_terminal_snr"
    )
    timesteps: Literal["uniform", "noisy", "clean"] = knob(
        "uniform",
        "noise of the photos: as the model was trained; twice as often much noise (layout: the early steps of drawing); or little (detail: the late ones)",
    )
    caption_dropout: float = knob(
        0.0, "share of steps trained with an empty prompt", "caption_dropout_rate", ge=0, le=1
    )
    ema: bool = knob(False, "keep an exponential moving average of the weights and export it", "use_ema")
    ema_decay: float = knob(0.999, "decay of that average", ge=0, lt=1)
    seed: int = knob(0, "of everything random", gt=-(2**32), lt=2**32)
    allow_tf32: bool = knob(True, "TF32 matrix products for fp32 work on Ampere and later")


class Lora(Section):
    """LoRA and DoRA"""

    rank: int = knob(16, "rank of the update", "network_dim", ge=1, le=4096)
    alpha: float | None = knob(None, "scale of the update; default the rank", "lora_alpha", "network_alpha", gt=0)
    init: Literal["gaussian", "kaiming"] = knob(
        "gaussian",
        "random start of the first matrix: diffusers' (spread 1 / rank), or kohya's (by the width of the layer)",
    )
    dropout: float = knob(0.0, "dropout before the adapter", "lora_dropout", "network_dropout", ge=0, lt=1)
    targets: list[str] | None = knob(
        None,
        "modules of the denoiser that get an adapter; default the attention's, as the family has them",
        "lora_layers",
    )
    text_targets: list[str] = knob(
        ["q_proj", "k_proj", "v_proj", "out_proj"],
        "modules of the text encoder that get an adapter, with train_text_encoder",
    )
    conv_rank: int | None = knob(None, "rank at 3x3 convolutions among the targets; default rank", ge=1, le=4096)
    conv_alpha: float | None = knob(None, "alpha at those; default conv_rank", gt=0)
