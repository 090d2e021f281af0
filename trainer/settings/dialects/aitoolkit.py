"""ai-toolkit's YAML: a job with one process (`sd_trainer`, by any of its names) over datasets, train, model, network.

Read from toolkit/config_modules.py (2026-08). Files for Stable Diffusion 1.x, 2.x and XL are read; those for models that
match flows are refused by name, as its adapters of them are put on other modules than ours.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.settings.dialects.files import Row
from trainer.settings.dialects.keyed import Key, Note, Stop, Values, choice, leaves, on, read, to
from trainer.settings.dialects.kohya import RESNETS, TEXT, TRANSFORMERS
from trainer.settings.subsets import entry

_PLAN = Note("the planner decides what waits where")
_DEVICE = Note("see --device")
_LOSS = Stop("the loss is the squared error of the paper", "leave it out", (0, 0.0, 1.0, 1, False))
_OURS = "such models are trained by our own flags: --model FOLDER --method lora --instance_data_dir PHOTOS"
_FLOW = Stop("files for models that match flows are not read", _OURS, (False,))
_SAMPLER = Note("previews use the model family's sampler and size")


def _model_kind(family: str) -> Key:
    return on(model__family=family)


def _arch(value: Any) -> Values:
    families = {"sd1": "sd1", "sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}
    if str(value) not in families:
        raise ConfigError(f"files for {value} are not read", f"give a Stable Diffusion 1.x, 2.x or XL model; {_OURS}")
    return {"model.family": families[str(value)]}


def _resolution(value: Any) -> Values:
    sides = value if isinstance(value, list) else [value]
    if len(set(sides)) > 1:
        raise ConfigError(f"{sides}: one run has one resolution", "keep one; buckets take care of shapes")
    return {"data.resolution": sides[0]}


def _network(value: Any) -> Values:
    if value not in ("lora", "dora"):
        raise ConfigError(f"{value} is not built in", "use lora or dora")
    return {"train.method": value}


TRAIN = {
    "steps": to("train.max_train_steps"),
    "lr": to("train.learning_rate"),
    "unet_lr": to("train.learning_rate"),
    "text_encoder_lr": to("train.text_encoder_lr"),
    "batch_size": to("train.train_batch_size"),
    "gradient_accumulation": to("train.gradient_accumulation_steps"),
    "gradient_accumulation_steps": to("train.gradient_accumulation_steps"),
    "train_text_encoder": to("train.train_text_encoder"),
    "train_unet": Stop("the denoiser is always trained", "set it to true", (True,)),
    "gradient_checkpointing": _PLAN,
    "optimizer": choice(
        ADAMW={"train.optimizer": "adamw"}, ADAM={"train.optimizer": "adamw"},
        ADAMW8BIT={"train.optimizer": "adamw", "memory.moments": "8bit"},
        ADAM8BIT={"train.optimizer": "adamw", "memory.moments": "8bit"},
        ADAFACTOR={"train.optimizer": "adafactor"}, PRODIGY={"train.optimizer": "prodigy"},
    ),
    "optimizer_params.weight_decay": to("train.adam_weight_decay"),
    "optimizer_params.eps": to("train.adam_epsilon"),
    "lr_scheduler": choice(
        CONSTANT={"train.lr_scheduler": "constant"}, LINEAR={"train.lr_scheduler": "linear"},
        COSINE={"train.lr_scheduler": "cosine"}, CONSTANT_WITH_WARMUP={"train.lr_scheduler": "constant_with_warmup"},
        COSINE_WITH_RESTARTS={"train.lr_scheduler": "cosine_with_restarts"},
    ),
    "lr_scheduler_params.num_warmup_steps": to("train.lr_warmup_steps"),
    "dtype": choice(
        BF16={"train.mixed_precision": "bf16"}, FP16={"train.mixed_precision": "fp16"}, FP32={"train.mixed_precision": "no"},
        FLOAT16={"train.mixed_precision": "fp16"}, BFLOAT16={"train.mixed_precision": "bf16"}, FLOAT32={"train.mixed_precision": "no"},
    ),
    "min_snr_gamma": to("train.snr_gamma"),
    "snr_gamma": to("train.snr_gamma"),
    "noise_offset": Key(lambda value: {"train.offset_noise": value} if value else {}),
    "max_grad_norm": to("train.max_grad_norm"),
    "ema_config.use_ema": on(train__ema=True),
    "ema_config.ema_decay": Note("see --ema_decay"),
    "disable_sampling": on(sample__num_validation_images=0),
    "reg_weight": to("prior.prior_loss_weight"),
    "xformers": _PLAN,
    "sdp": _PLAN,
    "attention_backend": _PLAN,
    "cache_text_embeddings": _PLAN,
    "unload_text_encoder": _PLAN,
    "skip_first_sample": Note("pictures begin with --validation_steps"),
    "force_first_sample": Note("pictures begin with --validation_steps"),
    "noise_scheduler": Stop("training noise is the model's own (DDPM)", "set it to ddpm", ("DDPM", "ddpm")),
    "max_denoising_steps": Stop("every step of the schedule is trained", "leave it out", (999, 1000)),
    "min_denoising_steps": Stop("every step of the schedule is trained", "set it to 0", (0,)),
    "linear_timesteps": _FLOW,
    "linear_timesteps2": _FLOW,
    "timestep_type": Stop("every step of the schedule is trained alike", "leave it out"),
    "bypass_guidance_embedding": _FLOW,
    "content_or_style": Stop("every step of the schedule is trained alike", "set it to balanced", ("BALANCED", "balanced")),
    "loss_type": Stop("the loss is the squared error of the paper", "set it to mse", ("MSE", "mse")),
    "weight_jitter": Stop("weights are not jittered", "set it to 0", (0, 0.0)),
    "prompt_dropout_prob": Key(lambda value: {"train.caption_dropout": value} if value else {}),
    "diff_output_preservation": Stop(
        "it compares with the model's own answer to the class word", "use --with_prior_preservation --by prediction", (False,)
    ),
    "diff_output_preservation_multiplier": Note("it belongs to diff_output_preservation"),
    "diff_output_preservation_class": Note("it belongs to diff_output_preservation"),
    "do_paramiter_swapping": Stop("all parameters learn in every step", "leave it out", (False,)),
}  # fmt: skip
MODEL = {
    "name_or_path": to("model.name"),
    "arch": Key(_arch),
    "is_xl": _model_kind("sdxl"),
    "is_v2": _model_kind("sd2"),
    "is_v_pred": on(model__prediction_type="v_prediction"),
    "vae_path": to("model.vae"),
    "dtype": _PLAN,
    "quantize": Stop("quantized weights lose what is learned", "use --preset 4gb or 6gb", (False,)),
    "quantize_te": _PLAN,
    "quantize_kwargs.exclude": Note("it belongs to quantize"),
    "low_vram": _PLAN,
    **dict.fromkeys(("is_flux", "is_v3", "is_lumina2", "is_pixart", "is_pixart_sigma", "is_auraflow"), _FLOW),
}
NETWORK = {
    "type": Key(_network),
    "rank": to("lora.rank"),
    "linear": to("lora.rank"),
    "alpha": to("lora.alpha"),
    "linear_alpha": to("lora.alpha"),
    "dropout": to("lora.dropout"),
    "conv": Key(lambda value: {"lora.conv_rank": value, "lora.targets": [*TRANSFORMERS, *RESNETS]}),
    "conv_alpha": to("lora.conv_alpha"),
    "transformer_only": Note("adapters are put on the modules of --targets"),
    "lokr_full_rank": Note("it belongs to LoKr"),
    "lokr_factor": Note("it belongs to LoKr"),
    "pretrained_lora_path": Stop("adapters are trained from zero", "leave it out"),
    "network_kwargs": Stop("modules are named with --targets", "leave it out"),
}
SAVE = {
    "dtype": choice(
        FLOAT16={"export.precision": "fp16"}, FP16={"export.precision": "fp16"}, BF16={"export.precision": "bf16"},
        BFLOAT16={"export.precision": "bf16"}, FLOAT32={"export.precision": "fp32"}, FP32={"export.precision": "fp32"},
    ),
    "save_every": to("checkpoint.checkpointing_steps"),
    "max_step_saves_to_keep": to("checkpoint.checkpoints_total_limit"),
    "save_format": choice(SAFETENSORS={}, DIFFUSERS={"export.formats": ["diffusers"]}),
    "push_to_hub": Note("nothing is uploaded; the export folder is ready for `hf upload`"),
    "hf_repo_id": Note("nothing is uploaded; the export folder is ready for `hf upload`"),
    "hf_private": Note("nothing is uploaded; the export folder is ready for `hf upload`"),
}  # fmt: skip
SAMPLE = {
    "sample_every": to("sample.validation_steps"),
    "prompts": to("sample.validation_prompt"),
    "guidance_scale": to("sample.guidance_scale"),
    "sample_steps": to("sample.steps"),
    "neg": Key(lambda value: {"sample.negative_prompt": value} if isinstance(value, str) else {}),
    **dict.fromkeys(("sampler", "width", "height", "seed", "walk_seed", "sample_start_step", "network_multiplier", "format",
                     "samples", "ext", "num_frames", "fps", "guidance_rescale"), _SAMPLER),
}  # fmt: skip
OTHER = {
    "training_folder": Note("the job has no name to be its run's folder there; see --output_dir"),
    "device": _DEVICE,
    "trigger_word": to("data.identifier"),
    "performance_log_every": Note("every step is in log.jsonl"),
    "log_dir": Note("trackers write to --logging_dir"),
    "logging.use_wandb": on(run__report_to=["wandb"]),
    "sqlite_db_path": Note("its own bookkeeping"),
}
DATASET = {
    "resolution": Key(_resolution),
    "caption_dropout_rate": to("train.caption_dropout"),
    "buckets": to("data.buckets"),
    "flip_x": to("data.random_flip"),
    "random_crop": on(data__crop="random"),
    "alpha_mask": to("data.masked_loss"),
    "cache_latents": Note("encoded photos are kept on disk"),
    "cache_latents_to_disk": Note("encoded photos are kept on disk"),
    "bucket_tolerance": Note("buckets step by 64 pixels"),
    "token_dropout_rate": Stop("captions are used as they stand", "set it to 0", (0, 0.0)),
    "shuffle_tokens": Stop("captions are used as they stand", "set it to false", (False,)),
    "keep_tokens": Note("it keeps tags from being shuffled, and captions are used as they stand"),
    "network_weight": Stop("every photo weighs alike", "set it to 1", (1, 1.0)),
    "flip_y": Stop("photos are not turned over", "set it to false", (False,)),
    "num_frames": Note("photos have one frame"),
    "type": Note("photos"),
    **dict.fromkeys(("control_path", "inpaint_path", "mask_path", "unconditional_path", "augmentations"),
                    Stop("it belongs to other kinds of training", "leave it out")),
    "shrink_video_to_frames": Note("photos have one frame"),
    "caption_ext": Note("captions lie beside their photos, as .txt or .caption"),
}  # fmt: skip
# what a folder is, in several keys that one row shows together
FOLDER = ("is_reg", "num_repeats", "folder_path", "dataset_path", "default_caption", "trigger_word")
KINDS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "fine_tune")


def load(tables: dict[str, Any]) -> tuple[list[Row], Values]:
    processes = tables["config"]["process"]
    if not isinstance(processes, list) or len(processes) != 1 or not isinstance(processes[0], dict):
        raise ConfigError("the file holds several processes, or none", "keep one process in it")
    process = processes[0]
    kind = process.get("type")
    if kind not in KINDS:
        return [
            Row(
                "process.type",
                str(kind),
                "refused",
                "only subjects are trained here",
                f"one of {', '.join(KINDS)} can be read",
            )
        ], {}
    rows = [Row("process.type", str(kind), "note", "it trains a subject, as everything here does")]
    values: Values = {"train.method": "lora" if process.get("network") else "full", "data.buckets": True}
    sections = {"train": TRAIN, "model": MODEL, "network": NETWORK, "save": SAVE, "sample": SAMPLE}
    for name, table in sections.items():
        section = process.get(name) or {}
        more, found = read(leaves(section), table)
        rows += [Row(f"{name}.{row.key}", row.value, row.outcome, row.text, row.fix) for row in more]
        values |= found
    rest = {key: value for key, value in process.items() if key not in (*sections, "datasets", "type")}
    more, found = read(leaves(rest), OTHER, ("logging.", "meta."))
    values |= found
    name, folder = tables["config"].get("name"), process.get("training_folder")
    if name and folder:
        values["run.output_dir"] = f"{folder}/{name}"
        told = Row("training_folder", str(folder), "value", f"run.output_dir = {folder}/{name}")
        more = [told if row.key == told.key else row for row in more]
    return rows + more + _datasets(process, values), _usual(values)


def _usual(values: Values) -> Values:
    """Its defaults that decide which weights learn, where the file says nothing."""
    if values["train.method"] != "full":
        values = {"lora.rank": 4, "lora.alpha": 1.0, "lora.init": "kaiming", "lora.targets": TRANSFORMERS} | values
        if values.get("train.train_text_encoder"):
            values.setdefault("lora.text_targets", TEXT)
    if not values.get("train.train_text_encoder"):
        values.pop("train.text_encoder_lr", None)
    return values


def _datasets(process: dict[str, Any], values: Values) -> list[Row]:
    rows, subsets = [], []
    trigger = str(process.get("trigger_word") or "")
    for number, dataset in enumerate(process.get("datasets") or []):
        name = f"datasets[{number}]"
        more, found = read(leaves({key: value for key, value in dataset.items() if key not in FOLDER}), DATASET)
        rows += [Row(f"{name}.{row.key}", row.value, row.outcome, row.text, row.fix) for row in more]
        for key, value in found.items():
            values.setdefault(key, value) if number else values.update({key: value})
        place = str(dataset.get("folder_path") or dataset.get("dataset_path") or "")
        if dataset.get("is_reg"):
            values |= {"prior.with_prior_preservation": True, "prior.class_data_dir": place}
            rows.append(Row(f"{name}.is_reg", place, "value", f"prior.class_data_dir = {place}"))
            continue
        word = str(dataset.get("trigger_word") or trigger)
        words = str(dataset.get("default_caption") or "").replace("[trigger]", word).strip() or word
        subsets.append(entry(dataset.get("num_repeats", 1), place, words))
        rows.append(Row(name, place, "value", f"data.subsets = {subsets[-1]}"))
    if subsets:
        values["data.subsets"] = subsets
    if prompts := values.get("sample.validation_prompt"):
        values["sample.validation_prompt"] = [prompt.replace("[trigger]", trigger) for prompt in prompts]
    return rows
