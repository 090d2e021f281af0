"""The same DreamBooth job through other trainers, beside ours, on the same model, photos, class images, steps and seed.

    python -m benchmarks peers diffusers=/path/to/diffusers kohya=/path/to/sd-scripts onetrainer=/path/to/OneTrainer

A checkout is named by whoever wants it compared, and runs with this interpreter or with its own, which is what its
requirements usually need: `kohya=/path/to/sd-scripts,python=/path/to/venv/bin/python`. `plain diffusers` is built in and
always runs. Each job is a process of its own, with few steps and with more: the difference is the speed of a step without
start-up, and the longer one's time is start to finish. A first run warms caches up and is not counted. With `--preset`
ours runs within that budget, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer import models
from trainer.errors import ConfigError

from ..harness import baseline, jobs
from ..harness.timing import Options

REPEATS = 2
SHORT, LONG = 4, 84  # OneTrainer counts epochs, of as many steps as there are photos
TINY = (4, 8)

Command = Callable[[jobs.Material, Path, int], list[object]]


@dataclass(frozen=True)
class Peer:
    """command: what to run; folder: where; version: of the checkout."""

    command: Command
    folder: Path | None = None
    version: str | None = None


class Failed(Exception):
    def __init__(self, ran: jobs.Ran):
        self.ran = ran


def suite(options: Options) -> Iterator[dict]:
    known = peers(options)
    short, long = TINY if options.tiny else (SHORT, LONG)
    with jobs.workplace() as place:
        root = Path(place)
        made = jobs.material(options, root)
        for name, peer in known.items():
            row = {"trainer": name, "version": peer.version, "model": options.model, "pixels": made.pixels}
            repeats, warm = (1, False) if options.tiny else (options.repeats, True)
            yield row | measure(peer, made, root / "runs", short, long, repeats, warm=warm)


def measure(
    peer: Peer, made: jobs.Material, folder: Path, short: int, long: int, repeats: int, *, warm: bool = False
) -> dict:
    """One trainer's columns, from pairs of a short and a long job. `warm`: a short one goes before them, because caches on
    disk and compiled kernels would make the first short one slow, and the difference small."""

    def run(steps: int) -> jobs.Ran:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ran = jobs.run(peer.command(made, folder / "run", steps), peer.folder, own=peer.folder is None)
        if ran.code:
            raise Failed(ran)
        return ran

    rates, longer = [], []
    try:
        if warm:
            run(short)
        for _ in range(repeats):
            start = run(short).seconds
            longer.append(run(long))
            rates.append(2 * (long - short) / (longer[-1].seconds - start))
    except Failed as stop:
        return {"exit": stop.ran.code, "failed": stop.ran.tail.strip()[-400:]}
    rated = min(rates) > 0  # else the steps were lost in start-up's noise
    return {
        "exit": 0,
        "images_per_second": round(statistics.median(rates), 4) if rated else None,
        "spread": round((max(rates) - min(rates)) / 2, 4) if rated and repeats > 1 else None,
        "start_to_finish_seconds": round(statistics.median(ran.seconds for ran in longer), 2),
        "steps": long,
        "repeats": repeats,
        "peak_bytes": max(ran.peak_bytes for ran in longer),
    }


def peers(options: Options) -> dict[str, Peer]:
    """Who runs: ours, the built-in baseline, and the checkouts that `options.words` name."""
    known = {"ours": Peer(_ours(None))}
    if options.preset:
        known[f"ours, {options.preset}"] = Peer(_ours(options.preset))
    known["plain diffusers"] = Peer(_plain)
    for word in options.words:
        name, _, rest = word.partition("=")
        if name not in CHECKOUTS or not rest:
            raise ConfigError(
                f"{word!r} names no trainer that peers knows.",
                f"Write NAME=FOLDER or NAME=FOLDER,python=FILE, where NAME is one of {', '.join(CHECKOUTS)}.",
            )
        path, *more = rest.split(",")
        python = dict(item.partition("=")[::2] for item in more).get("python") if more else sys.executable
        script, maker = CHECKOUTS[name]
        if options.model == "sdxl":
            script = {"kohya": "sdxl_train.py"}.get(name, script)
        checkout = Path(path).expanduser().resolve()
        if not (checkout / script).is_file():
            raise ConfigError(
                f"{path} is no checkout of {name}: it has no {script}.", "Give the checkout's root folder."
            )
        if python is None or shutil.which(python) is None:
            raise ConfigError(f"{','.join(more)!r} names no Python.", "Write python=/path/to/venv/bin/python.")
        if name == "diffusers" and options.model == "sdxl":
            raise ConfigError(
                "diffusers has no DreamBooth script that trains SDXL's whole UNet (only LoRA).",
                "Leave out diffusers=, or compare with --model sd1.",
            )
        if name == "kohya" and options.tiny:
            raise ConfigError(
                "kohya's sd-scripts cannot train a tiny model: they build the UNet in its public size, whatever the model "
                "says (library/original_unet.py).",
                "Leave out --tiny, or leave out kohya=.",
            )
        known[name] = Peer(maker([python, checkout / script], options), checkout, _version(checkout))
    return known


def _version(checkout: Path) -> str | None:
    said = subprocess.run(["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return said.stdout.strip() or None


def _ours(preset: str | None) -> Command:
    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        return jobs.ours(
            [
                *(("--preset", preset) if preset else ()),
                *("--model.name", made.model, "--instance_data_dir", made.photos, "--output_dir", run),
                *("--class_data_dir", made.classes, "--class_name", "dog", "--num_class_images", jobs.CLASS_IMAGES),
                *("--max_train_steps", steps, "--num_validation_images", 0, "--no-watch", "--formats", "diffusers"),
            ]
        )

    return command


def _plain(made: jobs.Material, run: Path, steps: int) -> list[object]:
    code = "from trainer.benchmarks.suites.peers import plain; plain()"
    return [sys.executable, "-c", code, made.model, made.pixels, steps, run]


def plain() -> None:
    """The built-in baseline in a process of its own: 8-bit AdamW, checkpointing, fused attention, everything resident."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pixels", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("run")
    words = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = models.load(words.model)
    mixed = torch.bfloat16 if device.type == "cuda" else None
    recipe = baseline.Recipe(mixed=mixed, eight_bit=True, sdpa=True, checkpointing=True)
    _, step = baseline.stepper(made, recipe, words.pixels, 1, device)
    for _ in range(words.steps):
        step()
    made.family.pipeline(made).save_pretrained(words.run)


def _diffusers(start: list[object], options: Options) -> Command:
    """diffusers' script with its usual memory savers."""
    precision = "bf16" if options.device.type == "cuda" else "no"

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        return [
            *start,
            *("--pretrained_model_name_or_path", made.model, "--output_dir", run),
            *("--instance_data_dir", made.photos, "--instance_prompt", "a photo of sks dog"),
            *("--class_data_dir", made.classes, "--class_prompt", "a photo of a dog"),
            *("--with_prior_preservation", "--prior_loss_weight", "1.0", "--num_class_images", jobs.CLASS_IMAGES),
            *("--resolution", made.pixels, "--train_batch_size", 1, "--gradient_accumulation_steps", 1),
            *("--gradient_checkpointing", "--use_8bit_adam", "--mixed_precision", precision),
            *("--learning_rate", "2e-6", "--lr_scheduler", "constant", "--lr_warmup_steps", 0),
            *("--max_train_steps", steps, "--seed", 0),
        ]

    return command


def _kohya(start: list[object], options: Options) -> Command:
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


def _onetrainer(start: list[object], options: Options) -> Command:
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
    "diffusers": ("examples/dreambooth/train_dreambooth.py", _diffusers),
    "kohya": ("train_db.py", _kohya),
    "onetrainer": ("scripts/train.py", _onetrainer),
}
