"""OneTrainer's JSON: a configuration, or one of its presets. Concepts and samples may stand inside or in files of their own.

Read from modules/util/config/*.py (2026-08). Its defaults for keys that a file leaves out are taken over as the package's page
says: text encoders are trained, rank 16 and alpha 1, adapters on every layer, aspect-ratio buckets.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.files import regular
from trainer.settings.dialects.files import Row
from trainer.settings.dialects.keyed import Key, Note, Stop, Values, choice, leaves, on, read, to
from trainer.settings.dialects.kohya import RESNETS, TEXT, TRANSFORMERS
from trainer.settings.subsets import entry

LAYERS = {
    "attn-only": TRANSFORMERS[:4],
    "attn-mlp": TRANSFORMERS,
    "full": [*TRANSFORMERS, *RESNETS, "conv_in", "conv_out", "linear_1", "linear_2"],
}
MODELS = {
    "STABLE_DIFFUSION_15": {"model.family": "sd1"},
    "STABLE_DIFFUSION_20": {"model.family": "sd2", "model.prediction_type": "v_prediction"},
    "STABLE_DIFFUSION_20_BASE": {"model.family": "sd2", "model.prediction_type": "epsilon"},
    "STABLE_DIFFUSION_21": {"model.family": "sd2", "model.prediction_type": "v_prediction"},
    "STABLE_DIFFUSION_21_BASE": {"model.family": "sd2", "model.prediction_type": "epsilon"},
    "STABLE_DIFFUSION_XL_10_BASE": {"model.family": "sdxl"},
}
PRECISIONS = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "fp32", "TFLOAT_32": "fp32"}


def _resolution(value: Any) -> Values:
    sides = str(value).replace(" ", "").split(",")
    if len(sides) > 1 or "x" in sides[0]:
        raise ConfigError(f"{value}: one run has one resolution", "keep one number; buckets take care of shapes")
    return {"data.resolution": sides[0]}


def _destination(value: Any) -> Values:
    path = Path(str(value))
    return {"run.output_dir": str(path.with_suffix("") if path.suffix else path)}


def _layers(value: Any) -> Values:
    if value not in LAYERS:
        raise ConfigError(
            f"the layer filter {value!r} is not known here", f"choose one of {', '.join(LAYERS)}, or use --targets"
        )
    return {"lora.targets": LAYERS[value]}


def _steps(value: Any, unit: Any, name: str) -> tuple[str, Any] | None:
    return (name, value) if unit == "STEP" and value else None


_OTHER_PARTS = ("prior.", "transformer.", "unconditional_transformer.", "text_encoder_3.", "text_encoder_4.", "effnet_encoder.",
                "decoder.", "decoder_text_encoder.", "decoder_vqgan.", "quantization.", "embedding.", "cloud.", "secrets.",
                "optimizer_defaults.", "__version", "oft_", "lokr_", "text_encoder_3_", "text_encoder_4_", "concept_stats.")  # fmt: skip
_PLAN = Note("the planner decides what waits where")
_DTYPE = Note("weights have the format of --weights; see `plan`")
_LOSS = Stop("the loss is the squared error of the paper", "set it to 0", (0, 0.0))
_MINUTES = Note("counted in steps here: --checkpointing_steps, --validation_steps")

TABLE = {
    "training_method": choice(FINE_TUNE={"train.method": "full"}, LORA={"train.method": "lora"}),
    "model_type": choice(**MODELS),
    "base_model_name": to("model.name"),
    "vae.model_name": to("model.vae"),
    "output_model_destination": Key(_destination),
    "output_model_format": choice(
        DIFFUSERS={"export.formats": ["diffusers"]}, ORIGINAL_SINGLE_FILE={"export.formats": ["single_file"]},
        SAFETENSORS={}, LEGACY_SAFETENSORS={}, KOHYA_LORA={"export.formats": ["lora_kohya"]},
        LEGACY_LORA={"export.formats": ["lora_kohya"]}, DIFFUSERS_LORA={"export.formats": ["lora_diffusers"]},
    ),
    "output_dtype": choice(**{name: {"export.precision": p} for name, p in PRECISIONS.items()}),
    "cache_dir": to("run.cache_dir"),
    "tensorboard": Note("its pages are written with --report_to tensorboard; numbers and pictures are in the report"),
    "aspect_ratio_bucketing": to("data.buckets"),
    "latent_caching": to("memory.cache_latents"),
    "learning_rate_scheduler": choice(
        CONSTANT={"train.lr_scheduler": "constant"}, LINEAR={"train.lr_scheduler": "linear"},
        COSINE={"train.lr_scheduler": "cosine"}, COSINE_WITH_HARD_RESTARTS={"train.lr_scheduler": "cosine_with_restarts"},
    ),
    "learning_rate": to("train.learning_rate"),
    "learning_rate_warmup_steps": Key(lambda value: {"train.lr_warmup_steps": int(value)}),
    "learning_rate_cycles": Key(lambda value: {"train.lr_num_cycles": int(value)} if float(value) != 1 else {}),
    "learning_rate_min_factor": Stop("schedules end at zero", "set it to 0", (0, 0.0)),
    "epochs": to("train.num_train_epochs"),
    "batch_size": to("train.train_batch_size"),
    "gradient_accumulation_steps": to("train.gradient_accumulation_steps"),
    "ema": choice(OFF={}, CPU={"train.ema": True}, GPU={"train.ema": True}),
    "ema_decay": Key(lambda value: {"train.ema_decay": value}),
    "train_dtype": choice(
        FLOAT_16={"train.mixed_precision": "fp16"}, BFLOAT_16={"train.mixed_precision": "bf16"},
        FLOAT_32={"train.mixed_precision": "no"}, TFLOAT_32={"train.mixed_precision": "no"},
    ),
    "resolution": Key(_resolution),
    "dropout_probability": Key(lambda value: {"lora.dropout": value} if value else {}),
    "clip_grad_norm": to("train.max_grad_norm"),
    "loss_weight_fn": choice(CONSTANT={}, MIN_SNR_GAMMA={"train.snr_gamma": 5.0}),
    "loss_weight_strength": Note("min-SNR's gamma is --snr_gamma"),
    "learning_rate_scaler": choice(NONE={}, BOTH={"train.scale_lr": True}, GLOBAL_BOTH={"train.scale_lr": True}),
    "offset_noise_weight": Key(lambda value: {"train.offset_noise": value} if value else {}),
    "rescale_noise_scheduler_to_zero_terminal_snr": on(train__zero_terminal_snr=True),
    "force_v_prediction": on(model__prediction_type="v_prediction"),
    "force_epsilon_prediction": on(model__prediction_type="epsilon"),
    "unet.learning_rate": to("train.learning_rate"),
    "text_encoder.train": to("train.train_text_encoder"),
    "text_encoder.learning_rate": to("train.text_encoder_lr"),
    "text_encoder_2.learning_rate": to("train.text_encoder_2_lr"),
    "text_encoder_2.train": Note("both text encoders are trained, or none: text_encoder.train"),
    "masked_training": to("data.masked_loss"),
    "unmasked_weight": Note("masked pixels have the weight that the mask says"),
    "unmasked_probability": Note("masked pixels have the weight that the mask says"),
    "normalize_masked_area_loss": Note("a step's loss is the mean over the picture"),
    "layer_filter_preset": Key(_layers),
    "lora_rank": to("lora.rank"),
    "lora_alpha": to("lora.alpha"),
    "lora_decompose": on(train__method="dora"),
    "optimizer.optimizer": choice(
        ADAMW={"train.optimizer": "adamw"}, ADAM={"train.optimizer": "adamw"},
        ADAMW_8BIT={"train.optimizer": "adamw", "memory.moments": "8bit"},
        ADAFACTOR={"train.optimizer": "adafactor"}, PRODIGY={"train.optimizer": "prodigy"},
    ),
    "optimizer.beta1": to("train.adam_beta1"),
    "optimizer.beta2": to("train.adam_beta2"),
    "optimizer.weight_decay": to("train.adam_weight_decay"),
    "optimizer.eps": to("train.adam_epsilon"),
    "optimizer.relative_step": Stop("Adafactor runs at the given rate here", "set it to false", (False,)),
    "optimizer.scale_parameter": Stop("Adafactor runs at the given rate here", "set it to false", (False,)),
    "optimizer.warmup_init": Stop("Adafactor runs at the given rate here", "set it to false", (False,)),
    "seed": to("train.seed"),
    # without effect here
    **dict.fromkeys(("sample_after", "sample_after_unit", "backup_after", "backup_after_unit", "save_every", "save_every_unit",
                     "sample_skip_first", "save_skip_first"), _MINUTES),
    **dict.fromkeys(("async_offloading", "train_device", "temp_device", "dataloader_threads", "enable_autocast_cache", "only_cache",
                     "attention_mechanism", "multi_gpu", "device_indexes", "gradient_reduce_precision", "fused_gradient_reduce",
                     "async_gradient_reduce", "async_gradient_reduce_buffer", "compile", "fallback_train_dtype", "loss_scaler",
                     "unet.offload_fraction", "unet.activation_offloading", "unet.gradient_checkpointing", "layer_offload_fraction",
                     "gradient_checkpointing", "enable_async_offloading", "enable_activation_offloading"), _PLAN),
    **dict.fromkeys(("*.weight_dtype", "lora_weight_dtype", "embedding_weight_dtype"), _DTYPE),
    **dict.fromkeys(("*.gradient_checkpointing", "*.offload_fraction", "*.activation_offloading"), _PLAN),
    **dict.fromkeys(("*.include", "*.model_name", "*.attention_mask", "*.guidance_scale", "*.train_embedding"),
                    Note("a Stable Diffusion model has its parts, and trains no embeddings here")),
    **dict.fromkeys(("*.stop_training_after", "*.stop_training_after_unit"),
                    Note("the text encoder is trained to the end unless --text_encoder_stop_step says otherwise")),
    **dict.fromkeys(("workspace_dir", "debug_mode", "debug_dir", "huggingface_cache_dir", "offline_mode", "tensorboard_expose",
                     "tensorboard_always_on", "tensorboard_port", "validation", "validate_after", "validate_after_unit",
                     "continue_last_backup", "prevent_overwrites", "include_train_config", "clear_cache_before_training",
                     "concept_file_name", "concepts", "samples", "sample_definition_file_name", "sample_image_format",
                     "sample_video_format", "sample_audio_format", "samples_to_tensorboard", "non_ema_sampling", "rolling_backup",
                     "rolling_backup_count", "backup_before_save", "save_filename_prefix", "ema_update_step_interval", "frames",
                     "additional_embeddings", "embedding_learning_rate", "preserve_embedding_norm", "bundle_additional_embeddings",
                     "peft_type", "lora_decompose_norm_epsilon", "layer_filter", "layer_filter_regex", "huber_delta",
                     "vb_loss_strength", "noising_weight", "noising_bias", "timestep_shift", "dynamic_timestep_shifting",
                     "text_encoder_sequence_length", "text_encoder_2_sequence_length", "scheduler_params", "optimizer_defaults",
                     "custom_learning_rate_scheduler", "unet.train", "save_every"), Note("it has no counterpart here, or none is needed")),
    # would change what is learned
    "lora_model_name": Stop("adapters are trained from zero", "leave it empty"),
    "lora_decompose_output_axis": Stop("DoRA's magnitudes are those of output rows", "leave it out", (False, True)),
    "mse_strength": Stop("the loss is the squared error of the paper", "set it to 1", (1, 1.0)),
    **dict.fromkeys(("mae_strength", "log_cosh_strength", "huber_strength", "perturbation_noise_weight",
                     "masked_prior_preservation_weight"), _LOSS),
    "generalized_offset_noise": Stop("offset noise is one number a channel", "set it to false", (False,)),
    "min_noising_strength": Stop("every step of the schedule is trained", "set it to 0", (0, 0.0)),
    "max_noising_strength": Stop("every step of the schedule is trained", "set it to 1", (1, 1.0)),
    "timestep_distribution": Stop("every step of the schedule is trained alike", "set it to UNIFORM", ("UNIFORM",)),
    "text_encoder_layer_skip": Key(lambda value: {"model.clip_skip": int(value) + 1} if value else {}),
    "text_encoder_2_layer_skip": Stop("the family's own text layer is used", "set it to 0", (0,)),
    "force_circular_padding": Stop("convolutions pad with zeros", "set it to false", (False,)),
    "custom_conditioning_image": Stop("it belongs to inpainting models", "set it to false", (False,)),
    "*.dropout_probability": Stop("captions are dropped for all encoders alike", "use --caption_dropout", (0, 0.0)),
}  # fmt: skip

TAKEN = {  # what decides which weights learn, where the file says nothing
    "train.method": "full",
    "train.train_text_encoder": True,
    "lora.rank": 16,
    "lora.alpha": 1.0,
    "lora.init": "kaiming",
    "lora.targets": LAYERS["full"],
    "lora.text_targets": TEXT,
    "data.buckets": True,
}


def load(tables: dict[str, Any], path: Path) -> tuple[list[Row], Values]:
    """Rows and values of the whole file, with the concepts it holds or names."""
    plain = {key: value for key, value in tables.items() if key not in ("concepts", "samples")}
    if plain.get("peft_type", "LORA") != "LORA":
        plain["training_method"] = plain["peft_type"]  # which is refused by that name
    rows, values = read(leaves(plain), TABLE, _OTHER_PARTS)
    for key, usual in TAKEN.items():
        if not (key.startswith("lora.") and values.get("train.method", "full") == "full"):
            values.setdefault(key, usual)
    if not values["train.train_text_encoder"]:
        for key in ("lora.text_targets", "train.text_encoder_lr", "train.text_encoder_2_lr"):
            values.pop(key, None)
    if values.get("train.lr_scheduler", "constant") == "constant" and values.get("train.lr_warmup_steps"):
        values["train.lr_scheduler"] = "constant_with_warmup"  # its constant schedule has the warm-up
    concepts = tables.get("concepts") or _beside(path, tables.get("concept_file_name"))
    more, found = _concepts(concepts)
    samples = tables.get("samples") or _beside(path, tables.get("sample_definition_file_name"))
    prompts = [str(sample["prompt"]) for sample in samples if sample.get("prompt")]
    if prompts:
        found["sample.validation_prompt"] = prompts
    return rows + more, values | found


def _beside(path: Path, name: Any) -> list[dict[str, Any]]:
    """A list in a file of its own: as it is named, or beside this one; none where it is not there (presets name the usual one)."""
    for place in (Path(str(name or "")), path.parent / Path(str(name or "")).name):
        if name and place.is_file():
            fix = "export it again"
            found = regular.parsed(place, "JSON", fix, partial(json.loads, regular.text(place, fix)))
            if not (isinstance(found, list) and all(isinstance(each, dict) for each in found)):
                raise ConfigError(f"{place} is not a list of objects", fix)
            return found
    return []


def _concepts(concepts: list[dict[str, Any]]) -> tuple[list[Row], Values]:
    """Photo folders: a concept each, with its repeats and the text it is described by."""
    rows, subsets, values = [], [], {}
    for number, concept in enumerate(concepts):
        name, place = f"concepts[{number}]", str(concept.get("path") or "")
        if concept.get("enabled", True) is False or concept.get("type") == "VALIDATION":
            rows.append(Row(name, place, "note", "it is switched off, or kept for validation"))
            continue
        if concept.get("type") == "PRIOR_PREDICTION":
            values |= {"prior.with_prior_preservation": True, "prior.by": "prediction", "prior.class_data_dir": place}
            rows.append(Row(name, place, "value", "prior.by = prediction"))
            continue
        text = concept.get("text") or {}
        words = ""
        if text.get("prompt_source") == "concept" and Path(str(text.get("prompt_path") or "")).is_file():
            lines = regular.text(Path(text["prompt_path"]), "mend it, or export it again").splitlines()
            words = next((line.strip() for line in lines if line.strip()), "")
        elif text.get("prompt_source") == "filename":
            rows.append(Row(f"{name}.text.prompt_source", "filename", "refused", "file names are not captions here",
                            "write name.txt beside each photo"))  # fmt: skip
        repeats = max(1, round(float(concept.get("balancing", concept.get("repeats", 1)))))
        subsets.append(entry(repeats, place, words))
        rows.append(Row(name, place, "value", f"data.subsets = {subsets[-1]}"))
        image = concept.get("image") or {}
        values |= {"data.random_flip": True} if image.get("enable_random_flip") else {}
    if subsets:
        values["data.subsets"] = subsets
    return rows, values
