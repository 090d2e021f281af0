"""Flags of diffusers' and kohya's scripts that are more than another name for a knob.

Plain renamings stand beside their knob in `config.py`. Here are the rest, in three tables: SETS turns a flag into values of
ours, NOTED accepts a flag that is meaningless here and says why in one line, and REFUSED lists those that would change
what is learned and cannot be honoured, so that nobody believes they were.
Read from the argument parsers of diffusers' `examples/dreambooth/` (2026-08) and kohya's sd-scripts (2026-02).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

SWITCH = "true"  # what a flag without a value carries


@dataclass(frozen=True)
class Sets:
    """The values a flag stands for, and what to say about it. `to` maps the flag's text to {dotted key: value}."""

    to: Callable[[str], dict[str, Any]]
    note: str = ""
    many: bool = False  # takes several words, handed over joined by a space


def _switch(note: str = "", **values: Any) -> Sets:
    """A switch: given (or given as true) it sets the values, `--flag false` sets nothing."""
    settings = {key.replace("__", "."): value for key, value in values.items()}
    return Sets(lambda text: settings if text.lower() not in ("false", "0", "no", "off") else {}, note)


def _xformers() -> Sets:
    """Their lines carry this flag for memory's sake alone, so they run where xformers is missing; `--attention xformers` insists."""
    if find_spec("xformers"):
        return _switch(memory__attention="xformers")
    return _switch("xformers is not installed, so torch's own attention runs, which saves the same memory")


def _caption_extension(text: str) -> dict[str, Any]:
    if text not in (".txt", ".caption"):
        raise ConfigError(f"--caption_extension {text} is not known here", "captions are name.txt or name.caption")
    return {}


def _words(flag: str, choices: dict[str, dict[str, Any]]) -> Sets:
    """A flag that takes one of several words, in any case."""

    def to(text: str) -> dict[str, Any]:
        if text.lower() not in choices:
            raise ConfigError(f"--{flag} {text} is not known here", f"choose one of: {', '.join(choices)}")
        return choices[text.lower()]

    return Sets(to)


def _optimizer_args(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if name == "betas" and value.count(",") == 1:
            found["train.adam_beta1"], found["train.adam_beta2"] = value.strip("()").split(",")
        elif name in ("weight_decay", "eps"):
            found["train.adam_weight_decay" if name == "weight_decay" else "train.adam_epsilon"] = value
        else:
            raise ConfigError(f"--optimizer_args {word} is not known here", "weight_decay=, eps= and betas=a,b are")
    return found


def _network_module(text: str) -> dict[str, Any]:
    if text not in ("networks.lora", "lora"):
        raise ConfigError(f"--network_module {text} is not known here", "use --method lora or --method dora")
    return {"train.method": "lora"}


def _resolution(text: str) -> dict[str, Any]:
    sides = re.split(r"(?<=\d)[x,](?=\d)", text)
    if len(set(sides)) != 1:
        raise ConfigError(f"--resolution {text} is not a square", f"use --resolution {sides[0]} --buckets")
    return {"data.resolution": sides[0]}


def _sample_prompts(text: str) -> dict[str, Any]:
    """kohya's prompt file: a prompt a line; what follows its first --n, --w, ... is one picture's settings."""
    path = Path(text)
    if path.suffix != ".txt" or not path.is_file():
        raise ConfigError(
            f"--sample_prompts {text}: there is no such .txt file", "check the path, or write --prompt 'a photo of ...'"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [re.split(r"\s--\w\b", line)[0].strip() for line in lines if line and not line.startswith("#")]
    return {"sample.validation_prompt": prompts} if prompts else {}


_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"train.optimizer": "adamw"},
    "adamw8bit": {"train.optimizer": "adamw", "memory.moments": "8bit"},
    "pagedadamw8bit": {"train.optimizer": "bnb_paged_adamw8bit"},
    "adafactor": {"train.optimizer": "adafactor"},
    "prodigy": {"train.optimizer": "prodigy"},
}
_NATIVE_OPTIMIZERS = {
    name: {"train.optimizer": name} for name in ("torch_adamw", "bnb_adamw8bit", "bnb_paged_adamw8bit")
}

SETS: dict[str, Sets] = {
    # diffusers
    "center_crop": _switch(data__crop="center"),
    "gradient_checkpointing": _switch(memory__checkpointing="blocks"),
    "use_8bit_adam": _switch(memory__moments="8bit"),
    "enable_xformers_memory_efficient_attention": _xformers(),
    "use_dora": _switch(train__method="dora"),
    "output_kohya_format": _switch(export__formats=["lora_diffusers", "lora_kohya"]),
    "resolution": Sets(_resolution),
    "optimizer": _words("optimizer", _OPTIMIZERS | _NATIVE_OPTIMIZERS),
    "offset_noise": Sets(
        lambda text: {"train.offset_noise": {"true": 0.1, "false": 0.0}.get(text.lower(), text)}
    ),  # a switch there, with a fixed strength of 0.1
    "prior_generation_precision": Sets(lambda text: {}, "class images are drawn in the precision of the computation (--mixed_precision)"),
    # kohya
    "optimizer_type": _words("optimizer_type", _OPTIMIZERS),
    "optimizer_args": Sets(_optimizer_args, many=True),
    "network_module": Sets(_network_module),
    "network_train_unet_only": _switch(train__train_text_encoder=False),
    "unet_lr": Sets(lambda text: {"train.learning_rate": text}),
    "v2": _switch(model__family="sd2"),
    "v_parameterization": _switch(model__prediction_type="v_prediction"),
    "random_crop": _switch(data__crop="random"),
    "caption_extension": Sets(_caption_extension),
    "sample_prompts": Sets(_sample_prompts, "only the prompts count; sizes, seeds and guidance are those of [sample]"),
    "color_aug": _switch("colour changes of strength 0.1 (--color_jitter)", data__color_jitter=0.1),
    "xformers": _xformers(),
    "sdpa": _switch(memory__attention="sdpa"),
    "mem_eff_attn": _switch("PyTorch's own attention is memory-efficient", memory__attention="sdpa"),
    "torch_compile": _switch(memory__compile="blocks"),
    "full_bf16": _switch("16-bit weights with stochastic rounding: plain bf16 loses DreamBooth's updates", memory__weights="16bit_sr", train__mixed_precision="bf16"),
    "full_fp16": _switch("16-bit weights with stochastic rounding: plain fp16 loses DreamBooth's updates", memory__weights="16bit_sr", train__mixed_precision="fp16"),
    "save_precision": _words("save_precision", {"float": {"export.precision": "fp32"}} | {p: {"export.precision": p} for p in ("fp32", "fp16", "bf16")}),
    "report_to": Sets(lambda text: {"run.report_to": _trackers(text)}, many=True),
    "log_with": Sets(lambda text: {"run.report_to": _trackers(text)}, many=True),
}  # fmt: skip


def _trackers(text: str) -> list[str]:
    words = text.replace(",", " ").lower().split()
    return ["tensorboard", "wandb"] if words == ["all"] else [word for word in words if word != "none"]


NOTED: dict[str, str] = {
    # diffusers
    "tokenizer_name": "the tokenizer is the model's own",
    "dataloader_num_workers": "photos are encoded once and kept, there is no data loader to feed",
    "local_rank": "one process trains on one card",
    "set_grads_to_none": "gradients are always freed as soon as they are used",
    "push_to_hub": "nothing is uploaded; the export folder is ready for `hf upload`",
    "hub_token": "nothing is uploaded; to read a gated model run `hf auth login`",
    "hub_model_id": "nothing is uploaded; the export folder is ready for `hf upload`",
    "tokenizer_max_length": "Stable Diffusion's text encoders take 77 tokens",
    "text_encoder_use_attention_mask": "Stable Diffusion's text encoders take no attention mask",
    "skip_save_text_encoder": "the export is always a complete model",
    "validation_images": "it belongs to super-resolution models",
    "validation_epochs": "previews are counted in steps: --validation_steps",
    "validation_scheduler": "previews use the model family's sampler",
    "class_labels_conditioning": "it belongs to super-resolution models",
    "image_interpolation_mode": "photos are resized with Lanczos",
    "repeats": "photos are repeated until the steps are done",
    "image_column": "photos come from a folder",
    "caption_column": "captions come from name.txt beside a photo",
    "adam_weight_decay_text_encoder": "one --adam_weight_decay holds for everything that is trained",
    "prodigy_beta3": "Prodigy runs with its library's default",
    "prodigy_decouple": "Prodigy's weight decay is always decoupled",
    "prodigy_use_bias_correction": "Prodigy runs with bias correction",
    "prodigy_safeguard_warmup": "Prodigy runs with its warm-up safeguard",
    # kohya
    "max_data_loader_n_workers": "photos are encoded once and kept, there is no data loader to feed",
    "persistent_data_loader_workers": "photos are encoded once and kept, there is no data loader to feed",
    "lowram": "weights are read tensor by tensor",
    "highvram": "the plan uses what --vram_gb allows",
    "lr_scheduler_args": "no schedule here takes more arguments",
    "fused_backward_pass": "the optimizer always runs inside backward",
    "blocks_to_swap": "the planner decides what waits in host RAM; see --stream",
    "cpu_offload_checkpointing": "the planner decides where activations wait; see --boundaries",
    "no_half_vae": "photos are encoded in fp32",
    "no_metadata": "exports name the settings they were trained with",
    "training_comment": "exports name the settings they were trained with",
    "use_safetensors": "exports are always safetensors",
    "save_model_as": "exports are always safetensors; see --formats",
    "output_name": "the export is named after the run folder",
    "save_state": "checkpoints always hold everything needed to resume",
    "save_state_on_train_end": "checkpoints always hold everything needed to resume",
    "save_every_n_epochs": "checkpoints are counted in steps: --checkpointing_steps",
    "save_n_epoch_ratio": "checkpoints are counted in steps: --checkpointing_steps",
    "save_last_n_epochs": "old checkpoints are counted: --checkpoints_total_limit",
    "save_last_n_epochs_state": "old checkpoints are counted: --checkpoints_total_limit",
    "save_last_n_steps": "old checkpoints are counted: --checkpoints_total_limit",
    "save_last_n_steps_state": "old checkpoints are counted: --checkpoints_total_limit",
    "sample_at_first": "what the model knew before is measured by the guard, pictures begin with --validation_steps",
    "sample_every_n_epochs": "previews are counted in steps: --validation_steps",
    "sample_sampler": "previews use the model family's sampler",
    "vae_batch_size": "the batch is what the budget holds",
    "text_encoder_batch_size": "the batch is what the budget holds",
    "skip_cache_check": "the cache is keyed by content, checking it is free",
    "min_bucket_reso": "buckets keep the pixel count of --resolution",
    "max_bucket_reso": "buckets keep the pixel count of --resolution",
    "bucket_reso_steps": "buckets step by 64 pixels",
    "bucket_no_upscale": "small photos are named in the summary",
    "resize_interpolation": "photos are resized with Lanczos",
    "caption_separator": "captions are used as they stand",
    "dataset_repeats": "photos are repeated until the steps are done",
    "log_prefix": "trackers write to --logging_dir",
    "log_tracker_name": "trackers write to --logging_dir",
    "wandb_run_name": "the run is named after its folder",
    "log_tracker_config": "trackers get the settings and the numbers of log.jsonl",
    "wandb_api_key": "keys do not belong on command lines; run `wandb login`",
    "log_config": "config.toml and log.jsonl in the run folder hold the settings",
    "tokenizer_cache_dir": "the CLIP vocabulary is built in",
    "disable_mmap_load_safetensors": "weights are read tensor by tensor",
    "multires_noise_discount": "it belongs to pyramid noise, which is off",
    "huber_schedule": "the loss is the squared error of the paper",
    "huber_c": "the loss is the squared error of the paper",
    "huber_scale": "the loss is the squared error of the paper",
    "dynamo_backend": "--torch_compile uses PyTorch's default",
    "ddp_timeout": "one process trains on one card",
    "ddp_gradient_as_bucket_view": "one process trains on one card",
    "ddp_static_graph": "one process trains on one card",
    "cache_info": "what was understood of the photos is printed each time",
    "keep_tokens_separator": "captions are used as they stand",
    "no_token_padding": "prompts are always padded to 77 tokens, which is what the models learned with",
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
         "huggingface_repo_visibility", "save_state_to_huggingface", "async_upload"),
        "nothing is uploaded; the export folder is ready for `hf upload`",
    ),
}  # fmt: skip

_PHOTOS = "put the photos in a folder and name it with --instance_data_dir"
REFUSED: dict[str, tuple[str, str]] = {  # flag: (why, fix)
    "dataset_name": ("data sets from the hub are not read", _PHOTOS),
    "dataset_config_name": ("data sets from the hub are not read", _PHOTOS),
    "dataset_config": ("kohya's data set files are not read", _PHOTOS),
    "in_json": ("kohya's metadata files are not read", "write captions to name.txt beside each photo"),
    "do_edm_style_training": ("the EDM formulation is not built in", "leave it out"),
    "network_train_text_encoder_only": ("the denoiser is always trained", "leave it out"),
    "network_weights": ("adapters are trained from zero", "use --resume_from_checkpoint to go on with a run"),
    "network_args": ("adapters take --rank, --alpha, --dropout and --targets", "use those"),
    "base_weights": ("adapters cannot be merged before training", "merge them first and name the merged model"),
    "clip_skip": ("the family's own text layer is used", "leave it out"),
    "max_token_length": ("prompts are one window of 77 tokens", "shorten the captions and leave it out"),
    "shuffle_caption": ("captions are used as they stand", "leave it out"),
    "keep_tokens": ("captions are used as they stand", "leave it out"),
    "loss_type": ("the loss is the squared error of the paper", "leave it out"),
    "multires_noise_iterations": ("pyramid noise is not built in", "use --offset_noise 0.1"),
    "adaptive_noise_scale": ("adaptive noise is not built in", "use --offset_noise 0.1"),
    "noise_offset_random_strength": ("offset noise has one strength", "leave it out"),
    "ip_noise_gamma_random_strength": ("input perturbation is not built in", "leave it out"),
    "min_timestep": ("every step of the schedule is trained", "leave it out"),
    "max_timestep": ("every step of the schedule is trained", "leave it out"),
    "caption_prefix": ("captions are used as they stand", "write it into the captions, or use --instance_prompt"),
    "caption_suffix": ("captions are used as they stand", "write it into the captions, or use --instance_prompt"),
    "secondary_separator": ("captions are used as they stand", "leave it out"),
    "enable_wildcard": ("captions are used as they stand", "leave it out"),
    "token_warmup_min": ("captions are used as they stand", "leave it out"),
    "token_warmup_step": ("captions are used as they stand", "leave it out"),
    "caption_tag_dropout_rate": ("captions are used as they stand", "use --caption_dropout_rate"),
    "caption_dropout_every_n_epochs": ("captions are dropped at random", "use --caption_dropout_rate"),
    "face_crop_aug_range": ("faces are not looked for", "use --crop random"),
    "conditioning_data_dir": ("control models are not trained here", "leave it out"),
    "resume_from_huggingface": ("runs are resumed from this disk", "use --resume_from_checkpoint"),
    "dim_from_weights": ("adapters are trained from zero", "give the rank with --rank"),
    "base_weights_multiplier": (
        "adapters cannot be merged before training",
        "merge them first and name the merged model",
    ),
    "lr_decay_steps": ("no schedule here has a tail of its own", "use --lr_scheduler linear or cosine"),
    "ip_noise_gamma": ("input perturbation is not built in", "leave it out"),
    "scale_weight_norms": ("adapter norms are not clamped", "leave it out, or lower --learning_rate"),
    "use_lion_optimizer": ("Lion is not built in", "use --optimizer adamw"),
    "lr_scheduler_type": ("schedules are diffusers' own", "choose one with --lr_scheduler"),
    "fp8_base": ("fp8 weights lose DreamBooth's updates", "use --preset 4gb or 6gb"),
    "fp8_base_unet": ("fp8 weights lose DreamBooth's updates", "use --preset 4gb or 6gb"),
    "config_file": ("kohya's TOML has other sections", "use --config with this trainer's sections (see presets/)"),
}

HARMLESS: dict[str, tuple[str, ...]] = {  # values of refused flags that ask for what happens anyway
    "clip_skip": ("0", "1"),
    "max_token_length": ("75", "77"),
    "loss_type": ("l2",),
} | dict.fromkeys(
    ("keep_tokens", "multires_noise_iterations", "adaptive_noise_scale", "ip_noise_gamma",
     "scale_weight_norms", "token_warmup_min", "token_warmup_step", "caption_tag_dropout_rate", "lr_decay_steps",
     "caption_dropout_every_n_epochs", "min_timestep"),
    ("0", "0.0"),
) | {"max_timestep": ("1000",)}  # fmt: skip

# Flags diffusers' scripts accept although they do nothing there, so a line of theirs that has them still runs: a notice.
TOLERATED = frozenset(
    """
    class_data_dir class_prompt num_class_images prior_loss_weight sample_batch_size lr_warmup_steps lr_num_cycles
    lr_power validation_steps num_validation_images num_train_epochs adam_beta1 adam_beta2 adam_weight_decay
    adam_epsilon scale_lr logging_dir checkpoints_total_limit identifier class_name allow_tf32
    """.split()
)
