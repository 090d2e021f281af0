"""What storing weights and moments in few bits does to a real training run: the built-in model, its subject, three seeds.

    error = |dW - dW_fp32| / |dW_fp32| against the fp32 AdamW run of the same seed, kept = projection of dW on dW_fp32

Losses are taken before and after on fixed noise and timesteps, of the photos and of class images that did not train. The
rate decides what a format can lose: once at the demo's own rate, which is large, and once at Stable Diffusion 1.5's 2e-6,
where an update is far below what 16 bits can hold. Rounding to nearest cannot be chosen in the trainer; here, and only
here, it stands beside the others (`nearest`). So does a second moment of rows and columns (harness/factored.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from trainer.kernels.adamw_lowbit import State

from trainer import models
from trainer.data.texts import token_ids
from trainer.guard import judge
from trainer.models import Parts
from trainer.objective.loss import Objective
from trainer.out.checkpoint import found
from trainer.policy import Policy
from trainer.run import settle
from trainer.run.revisit import restore
from trainer.settings import overlay
from trainer.step import updates
from trainer.step.engine import Engine

from ..harness import factored, jobs
from ..harness.timing import Options
from . import quality

FORMATS: dict[str, tuple[str, str, str]] = {  # weights, moments, precision of the arithmetic
    "fp32 AdamW": ("fp32", "fp32", "no"),
    "fp32 weights, bf16 arithmetic": ("fp32", "fp32", "bf16"),
    "24 bits, 8-bit moments": ("24bit", "8bit", "bf16"),
    "24 bits, 4-bit moments": ("24bit", "4bit", "bf16"),
    "16 bits at random, 8-bit moments": ("16bit_sr", "8bit", "bf16"),
    "bf16 to nearest, 8-bit moments": ("24bit", "8bit", "bf16"),  # under `nearest`
    "24 bits, 8-bit first moment, factored second": ("24bit", "8bit", "bf16"),  # under `factored.instead`
}
NEAREST, FACTORED = list(FORMATS)[-2:]
TINY = ("fp32 AdamW", "24 bits, 8-bit moments", NEAREST)
RATES: dict[str, list[str]] = {
    "demo's": [],
    "2e-6": ["--learning_rate", "2e-6", "--text_encoder_lr", "2e-6", "--max_train_steps", "100"],
}
LEVELS = 8  # timesteps of a loss, evenly spread


@contextmanager
def nearest() -> Iterator[None]:
    """24-bit weights without their correction bits before and after every update: bf16 to nearest, as plain bf16 AdamW
    stores them."""
    update = updates.step_

    def forgetful(state: State, grad: Tensor, **settings: object) -> None:
        state.set_master(state.master().to(torch.bfloat16))  # the first time: as a model is loaded in 16 bits
        update(state, grad, **settings)
        state.set_master(state.master().to(torch.bfloat16))

    updates.step_ = forgetful
    try:
        yield
    finally:
        updates.step_ = update


AROUND = {NEAREST: nearest, FACTORED: factored.instead}


def suite(options: Options) -> Iterator[dict]:
    """`words`: `rates=2e-6`, `seeds=1`, `formats=...` (names with commas: separate them by |) shorten it."""
    asked = dict(word.split("=", 1) for word in options.words)
    formats = asked["formats"].split("|") if "formats" in asked else TINY if options.tiny else list(FORMATS)
    seeds = range(1 if options.tiny else int(asked.get("seeds", 3)))
    subject = next(s for s in quality.subjects(settle.SUBJECTS) if s.name == asked.get("only", "tuxedo-cat"))
    eye, prompts, base = judge.load("demo"), quality.Prompts.of(subject), models.load("demo")
    before = quality.drawn(base, None, prompts, options, tiny=options.tiny)
    start = Fixed(base, subject, prompts, before[len(prompts.subject) :][: len(prompts.bare)])
    short = ["--max_train_steps", "4", "--num_class_images", "2"] if options.tiny else []
    with jobs.workplace() as place:
        for rate, flags in RATES.items():
            if rate not in asked.get("rates", ",".join(RATES)).split(",") or (options.tiny and not flags):
                continue
            yield {"format": "before training", "rate": rate} | start.losses(start.weights)
            true: dict[int, dict[str, Tensor]] = {}
            for name in formats:
                runs = []
                for seed in seeds:
                    run = Path(place) / f"{rate}-{list(FORMATS).index(name)}-{seed}"
                    weights, moments, precision = FORMATS[name]
                    more = ["--weights", weights, "--moments", moments, "--mixed_precision", precision, *flags, *short]
                    more += ["--with_prior_preservation", "--train_text_encoder"]
                    with AROUND.get(name, nullcontext)():
                        quality.train(quality.words("demo", subject, seed, run, Path(place) / "cache") + more)
                    config = overlay.load(file=run / "config.toml")
                    parts, engine, _ = restore(found(run)[-1], config, options.device)
                    alone = (
                        weights == "16bit_sr" or name == NEAREST
                    )  # without correction bits it begins at a rounded weight
                    learned = {key: value.cpu().clone() for key, value in engine.master()}
                    moved = {key: value.double() - start.weight(key, rounded=alone) for key, value in learned.items()}
                    measured = distance(moved, true.setdefault(seed, moved)) | start.losses(learned)
                    if rate == "demo's":
                        after = quality.drawn(parts, engine, prompts, options, live=True, tiny=options.tiny)
                        scores = quality.scores(eye, subject, prompts, before, after)
                        measured |= {key: scores[key] for key in ("fidelity", "class_kept", "class_drift")}
                    runs.append(measured)
                yield {"format": name, "rate": rate, "seeds": len(runs)} | quality.spread(runs)


def distance(moved: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """Error and projection over all trained weights together."""
    square = sum(float(t.square().sum()) for t in true.values())
    error = sum(float((moved[key] - t).square().sum()) for key, t in true.items())
    along = sum(float((moved[key] * t).sum()) for key, t in true.items())
    return {"update_error": (error / square) ** 0.5, "update_kept": along / square}


class Fixed:
    """Losses on the same noise every time, in fp32 arithmetic so that only the weights differ, and the weights that a run
    starts from."""

    def __init__(self, parts: Parts, subject: quality.Subject, prompts: quality.Prompts, drawn: list[Image.Image]):
        said = {"instance": prompts.subject[0], "class": prompts.bare[0]}
        sets = {"instance": subject.photos(), "class": drawn}
        self.latents = {name: _latents(parts, pictures) for name, pictures in sets.items()}
        tokens = token_ids(parts, list(said.values()))
        self.tokens = {name: tokens[prompt] for name, prompt in said.items()}
        self.objective = Objective(parts.noise())
        self.engine = Engine(parts.family.units(parts, text=True), Policy(), "cpu")
        self.weights = {name: value.clone() for name, value in self.engine.master()}

    def weight(self, name: str, rounded: bool) -> Tensor:
        value = self.weights[name]
        return (value.bfloat16() if rounded else value).double()

    @torch.no_grad()
    def losses(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """{"instance_loss", "class_loss"} of a model with these weights."""
        self.engine.load_master(weights)
        found, levels = {}, self.objective.noise.at([(i + 0.5) / LEVELS for i in range(LEVELS)])
        for name, latents in self.latents.items():
            generator, errors = torch.Generator().manual_seed(0), []
            ids = {key: row.expand(LEVELS, *row.shape) for key, row in self.tokens[name].items()}
            for latent in latents:  # one picture at every level
                clean = latent.expand(LEVELS, *latent.shape)
                noised = self.objective.noised(clean, torch.randn(clean.shape, generator=generator), levels)
                guess = self.engine.forward({"sample": noised.sample, "timestep": levels} | ids)
                errors.append((guess - noised.target).square().mean().item())
            found[f"{name}_loss"] = statistics.mean(errors)
        return found


@torch.no_grad()
def _latents(parts: Parts, pictures: list[Image.Image]) -> Tensor:
    side = parts.family.resolution
    squares = [np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), np.float32) for picture in pictures]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 127.5 - 1
    return parts.vae.encode(pixels).latent_dist.mean * parts.vae.config.scaling_factor
