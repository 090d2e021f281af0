"""RAM of a whole job of a real-size model on this machine's CPU: what `plan` says before it, and the resident set while it ran.

Random weights in 16 bits are written as a folder of diffusers (they have the footprint of trained ones), then the command a
person would type is planned and run: two steps of one photo at few pixels, so that minutes are enough. `words` may name other
flags after `flags=`, parted by spaces, and leave text encoders out with `without=text_encoder_3`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer.events import PhaseEnded
from trainer.models import Parts
from trainer.models import family as family_of
from trainer.readers import log

from . import jobs, work
from .timing import Options, guarded, release

LEAN = "--weights 16bit_sr --moments 4bit --max_grad_norm 0 --mixed_precision bf16 --checkpointing blocks"
FLAGS = "--device cpu --no-with_prior_preservation --max_train_steps 2 --num_validation_images 0"
HOURS = 2


def rows(options: Options) -> Iterator[dict]:
    asked = dict(word.split("=", 1) for word in options.words if "=" in word)
    with jobs.workplace() as place:
        folder = Path(place)
        model = written(options, folder / "model", asked.get("without", "").split(","))
        release()  # what was written is not the job's
        flags = [*asked.get("flags", LEAN).split(), *FLAGS.split(), "--resolution", str(work.TINY_SIDE)]
        known = {"model": options.model, "flags": " ".join(flags)}
        yield guarded(known, partial(measure, folder, [*flags, "--model.name", str(model)]))


def written(options: Options, folder: Path, without: list[str]) -> Path:
    """A folder of diffusers in 16 bits."""
    made: Parts = work.parts(options) if options.tiny else family_of(options.model).meta()
    names = made.family.names
    encoders = zip((names.folders[part] for part in names.encoders), made.text_encoders, strict=False)
    made.text_encoders = [encoder for folder_name, encoder in encoders if folder_name not in without]
    source = (torch.randn(work.PERIOD, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for module in made.modules().values():
        work.fill(module.to(torch.bfloat16), source)
    made.family.pipeline(made).save_pretrained(folder)
    return folder


def measure(folder: Path, flags: list[str]) -> dict:
    photos = folder / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (work.TINY_SIDE, work.TINY_SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "0.png")
    words = [*flags, "--instance_data_dir", photos, "--class_name", "dog", "--formats", "diffusers"]
    words += ["--output_dir", folder / "run"]
    command = jobs.ours(["plan", *words, "--json"])
    told = subprocess.run(command, env=jobs.environment(own=True), capture_output=True, text=True)
    if told.returncode not in (0, 2):  # 2: it does not fit, which is planned as well
        raise ValueError(told.stderr[-400:])
    planned = json.loads(told.stdout)["ram_peak_bytes"]
    ran = jobs.run(jobs.ours(words), timeout=HOURS * 3600)
    row = {"planned_bytes": planned, "peak_bytes": ran.peak_bytes, "seconds": round(ran.seconds, 1), "exit": ran.code}
    if ran.code != 0:
        return row | {"failed": ran.tail.strip()[-400:]}
    for event in log.read(folder / "run"):
        if isinstance(event, PhaseEnded):
            row[f"{event.phase.replace(' ', '_')}_bytes"] = event.ram_bytes
    return row | {"off_percent": round(100 * (planned - ran.peak_bytes) / ran.peak_bytes, 2)}
