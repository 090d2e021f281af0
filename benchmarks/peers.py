"""The same DreamBooth job through other trainers, beside ours, on the same model, photos, class images, steps and seed.

    python -m benchmarks peers diffusers=/path/to/diffusers kohya=/path/to/sd-scripts onetrainer=/path/to/OneTrainer

A checkout is named by whoever wants it compared; `plain diffusers` is built in and always runs. Each job runs in a
process of its own, twice, with few and with more steps: the difference is the speed of a step without start-up, the
longer one's time is start to finish, and its peak is the whole card's. Peers run with this interpreter and need their own
requirements beside ours (diffusers' script: torchvision); `plain diffusers` takes steps only, and saves nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from . import jobs
from .harness import Options

SHORT, LONG = 5, 25
TINY = (2, 6)

Command = Callable[[jobs.Material, Path, int], list[object]]


def suite(options: Options) -> Iterator[dict]:
    checkouts = dict(word.split("=", 1) for word in options.words if "=" in word)
    short, long = TINY if options.tiny else (SHORT, LONG)
    with jobs.workplace() as place:
        root = Path(place)
        made = jobs.material(options, root)
        for name, (command, cwd) in peers(options, checkouts).items():
            ran = [
                jobs.run(command(made, root / f"{name}-{steps}".replace(" ", "-"), steps), cwd)
                for steps in (short, long)
            ]
            row = {
                "trainer": name,
                "model": options.model,
                "tiny": options.tiny,
                "pixels": made.pixels,
                "exit": ran[1].code,
            }
            if any(each.code for each in ran):
                yield row | {"said": (ran[0].tail if ran[0].code else ran[1].tail).strip()[-400:]}
                continue
            images, longer = 2 * (long - short), ran[1].seconds - ran[0].seconds
            yield row | {
                "images_per_second": round(images / longer, 4) if longer > 0 else None,  # None: lost in start-up's noise
                "start_to_finish_seconds": round(ran[1].seconds, 2),
                "steps": long,
                "peak_bytes": ran[1].peak_bytes,
            }


def peers(options: Options, checkouts: dict[str, str]) -> dict[str, tuple[Command, Path | None]]:
    known: dict[str, tuple[Command, Path | None]] = {
        "ours": (_ours(options), None),
        "plain diffusers": (_plain(options), None),
    }
    makers = {"diffusers": _diffusers, "kohya": _kohya, "onetrainer": _onetrainer}
    for name, path in checkouts.items():
        known[name] = (makers[name](Path(path), options), Path(path))
    return known


def _ours(options: Options) -> Command:
    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        preset = ["--preset", options.preset] if options.preset else []
        return jobs.ours(
            [
                *preset,
                "--model.name",
                made.model,
                "--instance_data_dir",
                made.photos,
                "--class_data_dir",
                made.classes,
                "--class_name",
                "dog",
                "--num_class_images",
                jobs.CLASS_IMAGES,
                "--max_train_steps",
                steps,
                "--num_validation_images",
                0,
                "--no-watch",
                "--output_dir",
                run,
                "--formats",
                "diffusers",
            ]
        )

    return command


def _plain(options: Options) -> Command:
    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        words = ["--model", options.model, "--steps", steps] + (["--tiny"] if options.tiny else [])
        return [sys.executable, "-c", "from trainer.benchmarks.peers import plain; plain()", *words]

    return command


def plain() -> None:
    """The built-in baseline in a process of its own: 8-bit AdamW, checkpointing, fused attention, everything resident."""
    import argparse

    import torch

    from . import baseline, work

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="sd1")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    options = Options(words.model, tiny=words.tiny)
    made = work.parts(options)
    mixed = torch.bfloat16 if options.device.type == "cuda" else None
    _, step = baseline.stepper(
        made,
        baseline.Recipe(mixed=mixed, eight_bit=True, sdpa=True, checkpointing=True),
        work.side(options, made),
        1,
        options.device,
    )
    for _ in range(words.steps):
        step()
    if options.device.type == "cuda":
        torch.cuda.synchronize()


def _diffusers(checkout: Path, options: Options) -> Command:
    """examples/dreambooth/train_dreambooth.py with its usual memory savers."""
    script = checkout / "examples/dreambooth/train_dreambooth.py"
    precision = "bf16" if options.device.type == "cuda" else "no"

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        return [
            sys.executable,
            script,
            "--pretrained_model_name_or_path",
            made.model,
            "--instance_data_dir",
            made.photos,
            "--class_data_dir",
            made.classes,
            "--output_dir",
            run,
            "--with_prior_preservation",
            "--prior_loss_weight",
            "1.0",
            "--instance_prompt",
            "a photo of sks dog",
            "--class_prompt",
            "a photo of a dog",
            "--resolution",
            made.pixels,
            "--train_batch_size",
            1,
            "--gradient_accumulation_steps",
            1,
            "--gradient_checkpointing",
            "--use_8bit_adam",
            "--learning_rate",
            "2e-6",
            "--lr_scheduler",
            "constant",
            "--lr_warmup_steps",
            0,
            "--num_class_images",
            jobs.CLASS_IMAGES,
            "--max_train_steps",
            steps,
            "--mixed_precision",
            precision,
            "--seed",
            0,
        ]

    return command


def _kohya(checkout: Path, options: Options) -> Command:
    """sd-scripts' train_db.py (sdxl_train.py for SDXL), folders in its own convention."""
    script = checkout / ("sdxl_train.py" if options.model == "sdxl" else "train_db.py")

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        photos, classes = run.parent / "kohya-photos", run.parent / "kohya-classes"
        for folder, source, name in ((photos, made.photos, "2_sks dog"), (classes, made.classes, "1_dog")):
            if not folder.exists():
                shutil.copytree(source, folder / name)
        return [
            sys.executable,
            script,
            "--pretrained_model_name_or_path",
            made.model,
            "--train_data_dir",
            photos,
            "--reg_data_dir",
            classes,
            "--output_dir",
            run,
            "--resolution",
            made.pixels,
            "--train_batch_size",
            2,
            "--max_train_steps",
            steps,
            "--learning_rate",
            "2e-6",
            "--optimizer_type",
            "AdamW8bit",
            "--mixed_precision",
            "bf16",
            "--gradient_checkpointing",
            "--cache_latents",
            "--sdpa",
            "--save_model_as",
            "safetensors",
            "--seed",
            0,
            "--stop_text_encoder_training",
            -1,
        ]

    return command


def _onetrainer(checkout: Path, options: Options) -> Command:
    """OneTrainer's scripts/train.py with a configuration of the same job."""
    kind = {"sd1": "STABLE_DIFFUSION_15", "sd2": "STABLE_DIFFUSION_21", "sdxl": "STABLE_DIFFUSION_XL_10_BASE"}[
        options.model
    ]

    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        run.mkdir(parents=True, exist_ok=True)
        concepts = [
            {"name": name, "path": str(path), "text": {"prompt_source": "concept"}, "loss_weight": 1.0}
            for name, path in (("sks dog", made.photos), ("dog", made.classes))
        ]
        (run / "concepts.json").write_text(json.dumps(concepts))
        settings = {
            "training_method": "FINE_TUNE",
            "model_type": kind,
            "base_model_name": str(made.model),
            "workspace_dir": str(run / "workspace"),
            "cache_dir": str(run / "cache"),
            "concept_file_name": str(run / "concepts.json"),
            "output_model_destination": str(run / "model.safetensors"),
            "resolution": str(made.pixels),
            "batch_size": 2,
            "epochs": max(1, steps * 2 // (jobs.PHOTOS + jobs.CLASS_IMAGES)),
            "learning_rate": 2e-6,
            "train_dtype": "BFLOAT_16",
            "gradient_checkpointing": "ON",
            "text_encoder": {"train": False},
            "optimizer": {"optimizer": "ADAMW_8BIT"},
        }
        (run / "config.json").write_text(json.dumps(settings, indent=1))
        return [sys.executable, checkout / "scripts/train.py", "--config-path", run / "config.json"]

    return command
