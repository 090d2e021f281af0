"""The flags of diffusers' DreamBooth scripts that are more than another name for a knob (`LINE`: only in a line made for them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.settings.dialects.meanings import (
    Flags,
    Noted,
    Refused,
    Sets,
    resolution,
    switch,
    trackers,
    value,
    words,
    xformers,
)

CAPTION_COLUMNS = ("text", "caption", "prompt")  # of metadata.jsonl, in this order
_SUBJECTS = "put the photos in a folder and name it with --instance_data_dir"
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"train.optimizer": "adamw"},
    "adamw8bit": {"train.optimizer": "adamw", "memory.moments": "8bit"},
    "pagedadamw8bit": {"train.optimizer": "bnb_paged_adamw8bit"},
    "adafactor": {"train.optimizer": "adafactor"},
    "prodigy": {"train.optimizer": "prodigy"},
}
_NATIVE = {name: {"train.optimizer": name} for name in ("torch_adamw", "bnb_adamw8bit", "bnb_paged_adamw8bit")}


def _image_folder(text: str) -> dict[str, Any]:
    """A local folder in the imagefolder layout, whose pictures may lie in its "train"."""
    folder = Path(text)
    if not folder.is_dir():
        raise ConfigError(
            f"--dataset_name {text}: data sets from the hub are not read, and no such folder is here", _SUBJECTS
        )
    return {"data.instance_data_dir": str(folder / "train" if (folder / "train").is_dir() else folder)}


def _caption_column(text: str) -> dict[str, Any]:
    if text not in CAPTION_COLUMNS:
        raise ConfigError(
            f"--caption_column {text} is not read",
            f"rename it in metadata.jsonl to one of {', '.join(CAPTION_COLUMNS)}",
        )
    return {"data.captions": True}


def _concepts(text: str) -> dict[str, Any]:
    """The subject of ShivamShrirao's fork: a JSON list of folders and prompts."""
    try:
        concepts = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"--concepts_list {text}: there is no such JSON file", "check the path") from None
    if not isinstance(concepts, list) or len(concepts) != 1 or not isinstance(concepts[0], dict):
        raise ConfigError(
            f"--concepts_list {text} does not hold one subject, which is what a run learns",
            "keep one in the file, or name several folders with --subsets",
        )
    keys = {
        "instance_data_dir": "data.instance_data_dir", "instance_prompt": "data.instance_prompt",
        "class_data_dir": "prior.class_data_dir", "class_prompt": "prior.class_prompt",
    }  # fmt: skip
    return {key: concepts[0][name] for name, key in keys.items() if concepts[0].get(name)}


_HUB = Noted("nothing is uploaded; the export folder is ready for `hf upload`")
_UPSCALERS = Noted("it belongs to super-resolution models")
_PIVOTAL = Refused(
    "new tokens are not trained here (textual inversion)", "leave it out; --train_text_encoder teaches words"
)
_TEXT_TO_IMAGE = Refused("it belongs to the text-to-image scripts", "leave it out")

FLAGS: Flags = {
    # values of ours
    "center_crop": switch(data__crop="center"),
    "gradient_checkpointing": switch(memory__checkpointing="blocks"),
    "use_8bit_adam": switch(memory__moments="8bit"),
    "enable_xformers_memory_efficient_attention": xformers(),
    "use_dora": switch(train__method="dora"),
    "output_kohya_format": switch(export__formats=["lora_diffusers", "lora_kohya"]),
    "resolution": Sets(resolution),
    "optimizer": words("optimizer", _OPTIMIZERS | _NATIVE),
    "offset_noise": Sets(
        lambda text: {"train.offset_noise": {"true": 0.1, "false": 0.0}.get(text.lower(), text)}
    ),  # a switch there, with a fixed strength of 0.1
    "prior_generation_precision": Sets(
        lambda text: {}, "class images are drawn in the precision of the computation (--mixed_precision)"
    ),
    "dataset_name": Sets(_image_folder),
    "caption_column": Sets(_caption_column),
    "report_to": Sets(lambda text: {"run.report_to": trackers(text)}, many=True),
    # of ShivamShrirao's fork, whose lines are in many guides
    "concepts_list": Sets(_concepts),
    "pretrained_vae_name_or_path": value("model.vae"),
    "save_interval": value("checkpoint.checkpointing_steps"),
    "save_sample_prompt": Sets(lambda text: {"sample.validation_prompt": [text]}),
    "save_sample_negative_prompt": value("sample.negative_prompt"),
    "n_save_sample": value("sample.num_validation_images"),
    "save_guidance_scale": value("sample.guidance_scale"),
    "save_infer_steps": value("sample.steps"),
    "hflip": switch(data__random_flip=True),
    "read_prompts_from_txts": switch(data__captions=True),
    "save_min_steps": Noted("checkpoints begin with --checkpointing_steps"),
    "pad_tokens": Noted("prompts are always padded to the text encoder's length"),
    "not_cache_latents": Noted("photos are encoded once and kept"),
    "log_interval": Noted("the loss of every step is in log.jsonl"),
    # without effect here
    "tokenizer_name": Noted("the tokenizer is the model's own"),
    "dataloader_num_workers": Noted("photos are encoded once and kept, there is no data loader to feed"),
    "local_rank": Noted("one process trains on one card"),
    "set_grads_to_none": Noted("gradients are always freed as soon as they are used"),
    "push_to_hub": _HUB,
    "hub_token": Noted("nothing is uploaded; to read a gated model run `hf auth login`"),
    "hub_model_id": _HUB,
    "tokenizer_max_length": Noted("Stable Diffusion's text encoders take 77 tokens"),
    "text_encoder_use_attention_mask": Noted("Stable Diffusion's text encoders take no attention mask"),
    "skip_save_text_encoder": Noted("the export is always a complete model"),
    "validation_images": _UPSCALERS,
    "validation_epochs": Noted("previews are counted in steps: --validation_steps"),
    "validation_scheduler": Noted("previews use the model family's sampler"),
    "class_labels_conditioning": _UPSCALERS,
    "image_interpolation_mode": Noted("photos are resized with Lanczos"),
    "repeats": Noted("photos are repeated until the steps are done"),
    "image_column": Noted("a folder's pictures are its files"),
    "adam_weight_decay_text_encoder": Noted("one --adam_weight_decay holds for everything that is trained"),
    "prodigy_beta3": Noted("Prodigy runs with its library's default"),
    "prodigy_decouple": Noted("Prodigy's weight decay is always decoupled"),
    "prodigy_use_bias_correction": Noted("Prodigy runs with bias correction"),
    "prodigy_safeguard_warmup": Noted("Prodigy runs with its warm-up safeguard"),
    "tracker_project_name": Noted("trackers write to --logging_dir"),
    "non_ema_revision": Noted("the revision that is trained is --revision"),
    "offload_ema": Noted("the average is kept in host RAM"),
    "foreach_ema": Noted("the average is kept in host RAM"),
    "enable_npu_flash_attention": Noted("attention is torch's own; see --attention"),
    "debug_loss": Noted("the loss of every step is in log.jsonl"),
    # would change what is learned
    "dataset_config_name": Refused("data sets from the hub are not read", _SUBJECTS),
    "do_edm_style_training": Refused("the EDM formulation is not built in", "leave it out", ("false",)),
    "token_abstraction": Refused("new tokens are not trained here", "write the subject's word in --instance_prompt"),
    "num_new_tokens_per_abstraction": _PIVOTAL,
    "train_text_encoder_ti": _PIVOTAL,
    "train_text_encoder_ti_frac": _PIVOTAL,
    "train_text_encoder_frac": Refused("the text encoder stops after a number of steps", "use --text_encoder_stop_step"),
    "use_blora": Refused("B-LoRA's blocks have no short name here", "name their modules with --targets"),
    "lora_unet_blocks": Refused("B-LoRA's blocks have no short name here", "name their modules with --targets"),
    "dream_training": Refused("DREAM is not built in", "leave it out", ("false",)),
    "dream_detail_preservation": _TEXT_TO_IMAGE,
    "input_perturbation": Refused("input perturbation is not built in", "leave it out", ("0", "0.0")),
    "max_train_samples": Refused("all photos of the folder are trained on", "put the ones you mean into a folder of their own"),
    "proportion_empty_prompts": Sets(lambda text: {"train.caption_dropout": text}),
    **dict.fromkeys(
        ("timestep_bias_strategy", "timestep_bias_begin", "timestep_bias_end", "timestep_bias_multiplier",
         "timestep_bias_portion"),
        Refused("every step of the schedule is trained alike", "leave it out", ("none",)),
    ),
}  # fmt: skip

LINE: Flags = {
    "cache_dir": Noted(
        "it is where that script keeps downloaded models; set HF_HOME for that. --run.cache_dir is the one of latents"
    ),
}


def flow_line(scheme: str) -> Flags:
    """Flags of the scripts for models that match flows. scheme: of the noise levels that the script draws where nobody says."""
    levels = Noted("it belongs to other --weighting_scheme than the family's own")
    return LINE | {
        "weighting_scheme": Refused("noise levels are drawn as the family has them", "leave it out", (scheme,)),
        "logit_mean": Refused("noise levels are drawn as the family has them", "leave it out", ("0", "0.0")),
        "logit_std": Refused("noise levels are drawn as the family has them", "leave it out", ("1", "1.0")),
        "mode_scale": levels,
        "precondition_outputs": Refused(
            "the loss is the velocity's, every noise level weighed alike", "set it to 0", ("0",)
        ),
        "max_sequence_length": Noted("prompts are read in the length that the family's pipeline has"),
        "text_encoder_out_layers": Noted("the layers are those of the family's pipeline"),
        "system_prompt": Refused("the system prompt is the pipeline's own", "leave it out"),
        "guidance_scale": Noted("it is the guidance of distilled models; previews have --sample.guidance_scale"),
        "lora_blocks": Refused("blocks have no short names here", "name their modules with --targets"),
        "final_validation_prompt": Noted("previews go on to the end: --validation_prompt"),
        "skip_final_inference": switch(sample__num_validation_images=0),
        "use_aspect_ratio_buckets": switch(data__buckets=True),
        "aspect_ratio_buckets": Sets(lambda text: {"data.buckets": True}, "buckets follow the photos and --resolution"),
        "offload": Noted("the planner decides what waits where"),
        "do_fp8_training": Noted("weights stay in 16 bits and more, and the planner makes them fit"),
        "bnb_quantization_config_path": Refused("quantized weights lose what is learned", "use --preset 6gb or 8gb"),
        "fsdp_text_encoder": Noted("text encoders run layer by layer before training, and are gone"),
        "upcast_before_saving": Noted("what is exported has --export.precision"),
    }


SCRIPT_FLAGS = frozenset(
    """
    adam_beta1 adam_beta2 adam_epsilon adam_weight_decay adam_weight_decay_text_encoder allow_tf32 cache_dir caption_column
    center_crop checkpointing_steps checkpoints_total_limit class_data_dir class_labels_conditioning class_prompt
    dataloader_num_workers dataset_config_name dataset_name do_edm_style_training enable_xformers_memory_efficient_attention
    gradient_accumulation_steps gradient_checkpointing hub_model_id hub_token image_column image_interpolation_mode
    instance_data_dir instance_prompt learning_rate local_rank logging_dir lora_dropout lr_num_cycles lr_power lr_scheduler
    lr_warmup_steps max_grad_norm max_train_steps mixed_precision num_class_images num_train_epochs num_validation_images
    offset_noise optimizer output_dir output_kohya_format pre_compute_text_embeddings pretrained_model_name_or_path
    pretrained_vae_model_name_or_path prior_generation_precision prior_loss_weight prodigy_beta3 prodigy_decouple
    prodigy_safeguard_warmup prodigy_use_bias_correction push_to_hub random_flip rank repeats report_to resolution
    resume_from_checkpoint revision sample_batch_size scale_lr seed set_grads_to_none skip_save_text_encoder snr_gamma
    text_encoder_lr text_encoder_use_attention_mask tokenizer_max_length tokenizer_name train_batch_size train_text_encoder
    use_8bit_adam use_dora validation_epochs validation_images validation_prompt validation_scheduler validation_steps variant
    with_prior_preservation
    """.split()
)
