"""The flags of kohya's sd-scripts that are more than another name for a knob. What depends on the rest of the line (`LATER`:
two rates, epochs beside steps, a ratio for a warm-up) is put together in `lines`."""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.settings.dialects.meanings import (
    Flags,
    Noted,
    Refused,
    Sets,
    prompts,
    switch,
    trackers,
    words,
    xformers,
)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"train.optimizer": "adamw"},
    "adamw8bit": {"train.optimizer": "adamw", "memory.moments": "8bit"},
    "pagedadamw8bit": {"train.optimizer": "bnb_paged_adamw8bit"},
    "adafactor": {"train.optimizer": "adafactor"},
    "prodigy": {"train.optimizer": "prodigy"},
}
TRANSFORMERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
RESNETS = ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]
RATES = ("unet_lr", "text_encoder_lr", "text_encoder_lr1", "text_encoder_lr2", "learning_rate_te",
         "learning_rate_te1", "learning_rate_te2")  # fmt: skip
# flags whose meaning the rest of the line decides; those in MANY take several words
LATER = frozenset({*RATES, "optimizer_args", "network_args", "clip_skip", "network_alpha"})
MANY = frozenset({"text_encoder_lr", "optimizer_args", "network_args"})


def _caption_extension(text: str) -> dict[str, Any]:
    if text not in (".txt", ".caption", "txt", "caption"):
        raise ConfigError(f"--caption_extension {text} is not known here", "captions are name.txt or name.caption")
    return {}


def _network_module(text: str) -> dict[str, Any]:
    if text in ("networks.dylora", "networks.lora_fa", "networks.oft") or not text.startswith(
        ("networks.lora", "lora")
    ):
        raise ConfigError(f"--network_module {text} is not known here", "use --method lora or --method dora")
    return {"train.method": "lora"}


def _reg_data_dir(text: str) -> dict[str, Any]:
    """There the folder alone switches prior preservation on."""
    return (
        {"prior.class_data_dir": text, "prior.with_prior_preservation": True} if text.lower() not in OFF_WORDS else {}
    )


def _noise_offset_type(text: str) -> dict[str, Any]:
    if text.lower() != "original":
        raise ConfigError(f"--noise_offset_type {text}: pyramid noise is not built in", "use --noise_offset 0.1 alone")
    return {}


_SIXTEEN = "16-bit weights with stochastic rounding: plain 16 bits lose DreamBooth's updates"
_PRECISIONS = {"float": {"export.precision": "fp32"}} | {p: {"export.precision": p} for p in ("fp32", "fp16", "bf16")}
OFF_WORDS = ("", "none", "null")
_LOADER = Noted("photos are encoded once and kept, there is no data loader to feed")
_DDP = Noted("one process trains on one card")
_HUB = Noted("nothing is uploaded; the export folder is ready for `hf upload`")
_SAFE = Noted("exports are always safetensors; see --formats")
_STATE = Noted("checkpoints always hold everything needed to resume")
_EPOCHS = Noted("checkpoints are counted in steps: --checkpointing_steps")
_LIMIT = Noted("old checkpoints are counted: --checkpoints_total_limit")
_PREVIEWS = Noted("previews are counted in steps: --validation_steps")
_BUDGET = Noted("the batch is what the budget holds")
_BUCKETS = Noted("buckets keep the pixel count of --resolution")
_LOSS = Noted("the loss is the squared error of the paper")
_CARD = Noted("the export's title and trigger words are the run's own; see trainer.* and modelspec.* in the file")
_DEEPSPEED = Noted("DeepSpeed is not used: the planner decides what waits in host RAM")
_GUARD = Noted("photos are held back and measured by the guard; see --watch and --guard.interval")
_ZERO = ("0", "0.0", "none", "false")
_CAPTIONS = Refused("captions are used as they stand", "leave it out", _ZERO)
_FP8 = Refused("fp8 weights lose DreamBooth's updates", "use --preset 4gb or 6gb", ("false",))
_MERGE = Refused("adapters cannot be merged before training", "merge them first and name the merged model")
_V_LOSS = Refused(
    "the loss is not weighted by the prediction type", "leave it out; --snr_gamma 5 balances timesteps", _ZERO
)
_SD3 = Refused("it belongs to models that match flows (SD 3, Flux)", "leave it out")
_TIMESTEPS = Refused("every step of the schedule is trained", "leave it out", _ZERO)

FLAGS: Flags = {
    # values of ours
    "optimizer_type": words("optimizer_type", OPTIMIZERS),
    "network_module": Sets(_network_module),
    "network_train_unet_only": switch(train__train_text_encoder=False),
    "reg_data_dir": Sets(_reg_data_dir),
    "v2": switch(model__family="sd2"),
    "v_parameterization": switch(model__prediction_type="v_prediction"),
    "random_crop": switch(data__crop="random"),
    "caption_extension": Sets(_caption_extension),
    "caption_extention": Sets(_caption_extension),
    "noise_offset_type": Sets(_noise_offset_type),
    "sample_prompts": Sets(prompts, "only the prompts count; sizes, seeds and guidance are those of [sample]"),
    "color_aug": switch("colour changes of strength 0.1 (--color_jitter)", data__color_jitter=0.1),
    "xformers": xformers(),
    "diffusers_xformers": xformers(),
    "sdpa": switch(memory__attention="sdpa"),
    "mem_eff_attn": switch("PyTorch's own attention is memory-efficient", memory__attention="sdpa"),
    "torch_compile": switch(memory__compile="blocks"),
    "full_bf16": switch(_SIXTEEN, memory__weights="16bit_sr", train__mixed_precision="bf16"),
    "full_fp16": switch(_SIXTEEN, memory__weights="16bit_sr", train__mixed_precision="fp16"),
    "save_precision": words("save_precision", _PRECISIONS),
    "log_with": Sets(lambda text: {"run.report_to": trackers(text)}, many=True),
    # without effect here
    "max_data_loader_n_workers": _LOADER,
    "persistent_data_loader_workers": _LOADER,
    "lowram": Noted("weights are read tensor by tensor"),
    "highvram": Noted("the plan uses what --vram_gb allows"),
    "lr_scheduler_args": Noted("no schedule here takes more arguments"),
    "fused_backward_pass": Noted("the optimizer always runs inside backward"),
    "fused_optimizer_groups": Noted("the optimizer always runs inside backward, unit by unit"),
    "blocks_to_swap": Noted("the planner decides what waits in host RAM; see --stream"),
    "cpu_offload_checkpointing": Noted("the planner decides where activations wait; see --boundaries"),
    "no_half_vae": Noted("photos are encoded in fp32"),
    "no_metadata": Noted("exports name the settings they were trained with"),
    "training_comment": Noted("exports name the settings they were trained with"),
    "use_safetensors": Noted("exports are always safetensors"),
    "save_model_as": _SAFE,
    "output_config": Noted("config.toml in the run folder holds every setting"),
    "save_state": _STATE,
    "save_state_on_train_end": _STATE,
    "save_every_n_epochs": _EPOCHS,
    "save_n_epoch_ratio": _EPOCHS,
    "save_last_n_epochs": _LIMIT,
    "save_last_n_epochs_state": _LIMIT,
    "save_last_n_steps": _LIMIT,
    "save_last_n_steps_state": _LIMIT,
    "sample_at_first": Noted("what the model knew before is measured by the guard, pictures begin with --validation_steps"),
    "sample_every_n_epochs": _PREVIEWS,
    "sample_sampler": Noted("previews use the model family's sampler"),
    "vae_batch_size": _BUDGET,
    "text_encoder_batch_size": _BUDGET,
    "skip_cache_check": Noted("the cache is keyed by content, checking it is free"),
    "min_bucket_reso": _BUCKETS,
    "max_bucket_reso": _BUCKETS,
    "bucket_reso_steps": Noted("buckets step by 64 pixels"),
    "bucket_no_upscale": Noted("small photos are named in the summary"),
    "resize_interpolation": Noted("photos are resized with Lanczos"),
    "caption_separator": Noted("captions are used as they stand"),
    "dataset_repeats": Noted("photos are repeated until the steps are done"),
    "log_prefix": Noted("trackers write to --logging_dir"),
    "log_tracker_name": Noted("trackers write to --logging_dir"),
    "wandb_run_name": Noted("the run is named after its folder"),
    "log_tracker_config": Noted("trackers get the settings and the numbers of log.jsonl"),
    "wandb_api_key": Noted("keys do not belong on command lines; run `wandb login`"),
    "log_config": Noted("config.toml and log.jsonl in the run folder hold the settings"),
    "console_log_level": Noted("log.jsonl in the run folder holds what happened"),
    "console_log_file": Noted("log.jsonl in the run folder holds what happened"),
    "console_log_simple": Noted("log.jsonl in the run folder holds what happened"),
    "tokenizer_cache_dir": Noted("the CLIP vocabulary is built in"),
    "disable_mmap_load_safetensors": Noted("weights are read tensor by tensor"),
    "multires_noise_discount": Noted("it belongs to pyramid noise, which is off"),
    "huber_schedule": _LOSS,
    "huber_c": _LOSS,
    "huber_scale": _LOSS,
    "dynamo_backend": Noted("--torch_compile uses PyTorch's default"),
    "ddp_timeout": _DDP,
    "ddp_gradient_as_bucket_view": _DDP,
    "ddp_static_graph": _DDP,
    "cache_info": Noted("what was understood of the photos is printed each time"),
    "debug_dataset": Noted("what was understood of the photos is printed each time"),
    **dict.fromkeys(
        ("keep_tokens", "keep_tokens_separator"),
        Noted("it keeps tags from being shuffled or dropped, and captions are used as they stand"),
    ),
    "no_token_padding": Noted("prompts are always padded to 77 tokens, which is what the models learned with"),
    "initial_epoch": Noted("a resumed run goes on where its checkpoint was written"),
    "initial_step": Noted("a resumed run goes on where its checkpoint was written"),
    "skip_until_initial_step": Noted("a resumed run goes on where its checkpoint was written"),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
         "huggingface_repo_visibility", "save_state_to_huggingface", "async_upload"), _HUB),
    **dict.fromkeys(
        ("metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags",
         "metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase",
         "metadata_preprocessor", "metadata_is_negative_embedding"), _CARD),
    **dict.fromkeys(
        ("deepspeed", "zero_stage", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
         "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model", "fp16_master_weights_and_gradients"),
        _DEEPSPEED),
    **dict.fromkeys(
        ("validation_seed", "validation_split", "validate_every_n_steps", "validate_every_n_epochs",
         "max_validation_steps"), _GUARD),
    # would change what is learned
    "dataset_class": Refused("data set classes of one's own are Python, which is not run", "leave it out"),
    "in_json": Refused("kohya's metadata files are not read", "write captions to name.txt beside each photo"),
    "metadata_file": Refused("kohya's metadata files are not read", "write captions to name.txt beside each photo"),
    "network_train_text_encoder_only": Refused("the denoiser is always trained", "leave it out", ("false",)),
    "network_weights": Refused("adapters are trained from zero", "use --resume_from_checkpoint to go on with a run"),
    "dim_from_weights": Refused("adapters are trained from zero", "give the rank with --rank", ("false",)),
    "base_weights": _MERGE,
    "base_weights_multiplier": _MERGE,
    "block_lr": Refused("one rate holds for the whole denoiser", "use --learning_rate"),
    "shuffle_caption": _CAPTIONS,
    "secondary_separator": _CAPTIONS,
    "enable_wildcard": _CAPTIONS,
    "weighted_captions": _CAPTIONS,
    "token_warmup_min": Refused("captions are used as they stand", "leave it out", (*_ZERO, "1")),
    "token_warmup_step": _CAPTIONS,
    "caption_prefix": Refused("captions are used as they stand", "write it into the captions, or use --instance_prompt"),
    "caption_suffix": Refused("captions are used as they stand", "write it into the captions, or use --instance_prompt"),
    "caption_tag_dropout_rate": Refused("captions are used as they stand", "use --caption_dropout_rate", _ZERO),
    "caption_dropout_every_n_epochs": Refused("captions are dropped at random", "use --caption_dropout_rate", _ZERO),
    "loss_type": Refused("the loss is the squared error of the paper", "leave it out", ("l2",)),
    "debiased_estimation_loss": Refused("the debiased loss is not built in", "use --snr_gamma 5", ("false",)),
    "scale_v_pred_loss_like_noise_pred": _V_LOSS,
    "v_pred_like_loss": _V_LOSS,
    "multires_noise_iterations": Refused("pyramid noise is not built in", "use --offset_noise 0.1", _ZERO),
    "adaptive_noise_scale": Refused("adaptive noise is not built in", "use --offset_noise 0.1", _ZERO),
    "noise_offset_random_strength": Refused("offset noise has one strength", "leave it out", ("false",)),
    "ip_noise_gamma": Refused("input perturbation is not built in", "leave it out", _ZERO),
    "ip_noise_gamma_random_strength": Refused("input perturbation is not built in", "leave it out", ("false",)),
    "min_timestep": _TIMESTEPS,
    "max_timestep": Refused("every step of the schedule is trained", "leave it out", ("1000", "none")),
    "face_crop_aug_range": Refused("faces are not looked for", "use --crop random"),
    "conditioning_data_dir": Refused("control models are not trained here", "leave it out"),
    "resume_from_huggingface": Refused("runs are resumed from this disk", "use --resume_from_checkpoint", ("false",)),
    "lr_decay_steps": Refused("no schedule here has a tail of its own", "use --lr_scheduler linear or cosine", _ZERO),
    "lr_scheduler_timescale": Refused("schedules are diffusers' own", "choose one with --lr_scheduler", _ZERO),
    "lr_scheduler_min_lr_ratio": Refused("schedules end at zero", "choose one with --lr_scheduler", _ZERO),
    "lr_scheduler_type": Refused("schedules are diffusers' own", "choose one with --lr_scheduler"),
    "scale_weight_norms": Refused("adapter norms are not clamped", "leave it out, or lower --learning_rate", _ZERO),
    "use_lion_optimizer": Refused("Lion is not built in", "use --optimizer adamw", ("false",)),
    "fp8_base": _FP8,
    "fp8_base_unet": _FP8,
    **dict.fromkeys(("weighting_scheme", "logit_mean", "logit_std", "mode_scale"), _SD3),
}  # fmt: skip

LINE: Flags = {}

SCRIPT_FLAGS = frozenset(FLAGS) | LATER | frozenset(
    """
    alpha_mask cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk
    caption_dropout_rate config_file dataset_config enable_bucket flip_aug gradient_accumulation_steps
    gradient_checkpointing learning_rate logging_dir lr_scheduler lr_scheduler_num_cycles lr_scheduler_power
    lr_warmup_steps masked_loss max_grad_norm max_train_epochs max_train_steps min_snr_gamma mixed_precision
    network_dim network_dropout noise_offset output_dir output_name pretrained_model_name_or_path prior_loss_weight resolution
    resume sample_every_n_steps save_every_n_steps seed stop_text_encoder_training train_batch_size train_data_dir
    train_text_encoder use_8bit_adam vae zero_terminal_snr
    """.split()
)  # fmt: skip
