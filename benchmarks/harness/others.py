"""The other trainers: where each one's script lies in its checkout, and the command line of the same job there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from . import jobs
from .timing import DEMO, Options

Command = Callable[[jobs.Material, Path, int], list[object]]


def diffusers(start: list[object], options: Options) -> Command:
    """diffusers' script with its usual memory savers; without them on the built-in model, which fits everywhere."""
    savers = () if options.model == DEMO else ("--gradient_checkpointing", "--use_8bit_adam")
    precision = "bf16" if options.device.type == "cuda" else "no"

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        return [
            *start,
            *("--pretrained_model_name_or_path", made.model, "--output_dir", run),
            *("--instance_data_dir", made.photos, "--instance_prompt", "a photo of sks dog"),
            *("--class_data_dir", made.classes, "--class_prompt", "a photo of a dog"),
            *("--with_prior_preservation", "--prior_loss_weight", "1.0", "--num_class_images", jobs.CLASS_IMAGES),
            *("--resolution", made.pixels, "--train_batch_size", 1, "--gradient_accumulation_steps", 1),
            *(*savers, "--mixed_precision", precision),
            *("--learning_rate", "2e-6", "--lr_scheduler", "constant", "--lr_warmup_steps", 0),
            *("--max_train_steps", steps, "--seed", 0),
        ]

    return command


def kohya(start: list[object], options: Options) -> Command:
    """sd-scripts, folders in its own convention. Its AdamW8bit cannot be had with a frozen text encoder: the script then
    gives bitsandbytes the same generator of parameters twice, the second time empty ("optimizer got an empty parameter
    list"), and freezing it at step 0 fails, too. The paged variant is the same arithmetic, and needs CUDA."""
    optimizer = "PagedAdamW8bit" if options.device.type == "cuda" else "AdamW"
    xl = options.model == "sdxl"

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        photos, classes, tokenizers = (run.parent / name for name in ("photos", "classes", "tokenizers"))
        shutil.copytree(made.photos, photos / "2_sks dog")  # each photo twice: as many as there are class images
        shutil.copytree(made.classes, classes / "1_dog")
        for hub_name, own in KOHYA_TOKENIZERS.items():  # else they are asked of the hub
            if (made.model / own).exists():
                shutil.copytree(made.model / own, tokenizers / hub_name)
        return [
            *start,
            *(("--v2", "--v_parameterization") if options.model == "sd2" else ()),
            *("--pretrained_model_name_or_path", made.model, "--tokenizer_cache_dir", tokenizers),
            *("--train_data_dir", photos, "--reg_data_dir", classes, "--output_dir", run),
            *("--resolution", made.pixels, "--train_batch_size", 2, "--max_train_steps", steps),
            *("--learning_rate", "2e-6", "--optimizer_type", optimizer, "--mixed_precision", "bf16"),
            *("--gradient_checkpointing", "--cache_latents", "--sdpa"),
            *("--max_data_loader_n_workers", 2, "--persistent_data_loader_workers"),
            *("--save_model_as", "safetensors", "--seed", 0),
            *(() if xl else ("--stop_text_encoder_training", -1)),
        ]

    return command


KOHYA_TOKENIZERS = {
    "openai_clip-vit-large-patch14": "tokenizer",
    "stabilityai_stable-diffusion-2": "tokenizer",
    "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k": "tokenizer_2",
}


def onetrainer(start: list[object], options: Options) -> Command:
    """OneTrainer's scripts/train.py with a configuration of the same job. The bitsandbytes it asks for (0.49.1) needs CUDA
    for 8-bit AdamW."""
    optimizer = "ADAMW_8BIT" if options.device.type == "cuda" else "ADAMW"
    kind = {"sd1": "STABLE_DIFFUSION_15", "sd2": "STABLE_DIFFUSION_21", "sdxl": "STABLE_DIFFUSION_XL_10_BASE"}[
        options.model
    ]

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        files = {
            "concepts": [
                {
                    "__version": 2,
                    "name": name,
                    "path": str(path),
                    "balancing": float(jobs.PHOTOS),  # of each in an epoch
                    "balancing_strategy": "SAMPLES",
                    "image": {"enable_crop_jitter": False},
                    "text": {"prompt_source": "concept"},
                }
                for name, path in (("sks dog", made.photos), ("dog", made.classes))
            ],
            "samples": [],
        }
        settings = {
            "__version": 11,  # of the configuration; older ones are migrated
            "training_method": "FINE_TUNE",
            "model_type": kind,
            "base_model_name": str(made.model),
            "workspace_dir": str(run / "workspace"),
            "cache_dir": str(run / "cache"),
            "concept_file_name": str(run / "concepts.json"),
            "sample_definition_file_name": str(run / "samples.json"),
            "sample_after_unit": "NEVER",
            "backup_after_unit": "NEVER",
            "backup_before_save": False,
            "tensorboard": False,
            "output_model_format": "DIFFUSERS",
            "output_model_destination": str(run / "model"),
            "resolution": str(made.pixels),
            "batch_size": 2,
            "epochs": steps // jobs.PHOTOS,
            "learning_rate": 2e-6,
            "learning_rate_warmup_steps": 0,
            "train_dtype": "BFLOAT_16",
            "text_encoder": {"train": False},
            "text_encoder_2": {"train": False},
            "optimizer": {"optimizer": optimizer},
        }
        run.mkdir()
        for name, value in (files | {"config": settings}).items():
            (run / f"{name}.json").write_text(json.dumps(value, indent=1))
        return [*start, "--config-path", run / "config.json"]

    return command


# name: (its script below the checkout, how to make its command line)
CHECKOUTS: dict[str, tuple[str, Callable[[list[object], Options], Command]]] = {
    "diffusers": ("examples/dreambooth/train_dreambooth.py", diffusers),
    "kohya": ("train_db.py", kohya),
    "onetrainer": ("scripts/train.py", onetrainer),
}
