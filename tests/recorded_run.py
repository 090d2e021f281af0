"""A run that never happened, the same every time: all kinds of events, in the order and with the magnitudes of a real
one.

`events(folder)` draws its photos and samples into `folder`. As a script it plays itself on this terminal, for testing
by eye: `python tests/recorded_run.py SECONDS [--until PHASE] [--folder F] [--steps N]`.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.events import (
    CheckpointSaved,
    Controls,
    Event,
    Exported,
    Finished,
    Meters,
    Notice,
    PhaseEnded,
    PhaseProgress,
    PhaseStarted,
    PhotosScanned,
    PlanReady,
    RunStarted,
    Sampled,
    Step,
)
from trainer.settings.config import Config

START, GIB = 1_760_000_000.0, 2**30
PROMPTS = ("a photo of sks dog", "a photo of sks dog on the moon")
PLAN = {
    "load": 3.1,
    "class images": 6.9,
    "cache images": 5.2,
    "cache text": 2.4,
    "train": 9.4,
    "sample": 7.1,
    "save": 5.9,
    "export": 5.9,
}


def picture(path: Path, hue: float, learned: float, seed: int, size: int = 128) -> str:
    """A "dog": rings that become clearer the more was learned."""
    chance = random.Random(seed)
    image = Image.new("HSV", (size, size), (int(255 * hue), 90, 120 + seed % 5 * 20))
    draw = ImageDraw.Draw(image)
    for i in range(6):
        r = size * (0.46 - 0.07 * i)
        x, y = (size / 2 + (1 - learned) * chance.uniform(-0.3, 0.3) * size for _ in range(2))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(int(255 * (hue + 0.09 * i) % 256), 180, 110 + 24 * i))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)
    return str(path)


def events(
    folder: Path, steps: int = 400, with_prior: bool = True, gpu: bool = True, status: str = "done", lr: float = 2e-6
) -> Iterator[Event]:
    """The whole run; times are as recorded, not as played."""
    clock = Clock()
    chance = random.Random(7)
    run = folder / "run"
    config = Config(preset="12gb")
    config.data.class_name, config.data.instance_prompt = "dog", PROMPTS[0]
    config.prior.with_prior_preservation = with_prior
    config.prior.class_data_dir = str(folder / "class")
    config.train.learning_rate, config.train.max_train_steps = lr, steps
    config.run.output_dir = str(run)
    provenance = {
        "train.learning_rate": "family default",
        "memory.vram_gb": "preset 12gb",
        "data.class_name": "flag",
        "train.max_train_steps": "flag",
    }
    photos = [picture(folder / "photos" / f"{i}.png", 0.08, 1.0, i) for i in range(5)]
    for i in range(8 if with_prior else 0):
        picture(folder / "class" / f"{i:03d}.png", i / 8, 0.6, 100 + i, 64)

    def phase(
        name: str, seconds: float, total: int, detail: str = "", inside: Iterator[Event] | None = None
    ) -> Iterator[Event]:
        yield clock(PhaseStarted(name, total), 0.1)
        before = clock.now
        if inside is not None:
            yield from inside
        else:
            for i in range(total):
                yield clock(PhaseProgress(name, i + 1, total), seconds / max(1, total))
            clock.now = max(clock.now, before + seconds)
        peak = PLAN[name] * (0.96 if name != "sample" else 1.01)
        yield clock(PhaseEnded(name, clock.now - before, int(peak * GIB) if gpu else 0, int(7.4 * GIB), detail), 0.0)

    def training() -> Iterator[Event]:
        for step in range(1, steps + 1):
            share = step / steps
            instance = 0.14 + 0.10 * math.exp(-4 * share) + chance.gauss(0, 0.05)
            cls = 0.12 + 0.01 * share + chance.gauss(0, 0.04) if with_prior else math.nan
            seconds = 0.42 + abs(chance.gauss(0, 0.01))
            yield clock(
                Step(
                    step,
                    steps,
                    instance + (cls if with_prior else 0),
                    instance,
                    cls,
                    lr,
                    0.4 + chance.random() * 0.2,
                    seconds,
                    1 + with_prior,
                    *((int(6.6 * GIB), int((9.0 + 0.1 * (step > 20)) * GIB), int(9.6 * GIB)) if gpu else (0, 0, 0)),
                    int(7.1 * GIB),
                    *((0.97, 60 + 12 * min(1.0, 4 * share)) if gpu else (math.nan, math.nan)),
                ),
                seconds,
            )
            if step == steps // 4 and gpu:
                text = (
                    "attention fell back from flash to the efficient backend for head size 160; steps take 4 % longer"
                )
                yield clock(Notice(text, "nothing to do; `doctor` lists the backends", "warning"), 0)
            if step % (steps // 4) == 0:
                yield clock(
                    CheckpointSaved(
                        step,
                        str(run / f"step-{step:06d}"),
                        int(4.1 * GIB),
                        6.2,
                        "last" if step == steps else "interval",
                    ),
                    6.2,
                )
                values = {
                    "subject fidelity": 0.55 + 0.3 * share,
                    "prompt fidelity": 0.31 - 0.03 * share,
                    "drift": 0.30 * share**2,
                }
                yield clock(
                    Meters(step, values, "drift would pass its limit near step 460" if step == steps else ""), 0.3
                )
                yield from phase("sample", 8.0, 4, inside=None)
                paths = [
                    picture(run / "samples" / f"step-{step:06d}" / f"{p}-{s}.png", 0.08 + 0.1 * p, share, 10 * p + s)
                    for p in range(2)
                    for s in range(2)
                ]
                yield clock(
                    Sampled(
                        step,
                        paths,
                        [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2,
                        [0, 1, 0, 1],
                        str(run / "samples" / f"step-{step:06d}.png"),
                    ),
                    0.1,
                )
            if status == "interrupted" and step == steps // 2 + 10:
                return

    yield clock(
        RunStarted(
            str(run),
            config.model_dump(),
            provenance,
            "NVIDIA GeForce RTX 3060" if gpu else "CPU (2 threads)",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            {"trainer": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        ),
        0,
    )
    yield clock(PhotosScanned(f"5 photos, 2 portrait, smallest 480 px; prompt '{PROMPTS[0]}' for all", photos, 1), 0.3)
    plan = (
        "fits 12 GiB with 2.6 GiB to spare: 24-bit weights, 8-bit moments, no recompute\nthe peak is training: 9.4 GiB "
        "(weights 2.4, moments 1.6, activations 4.6, context 0.8)\nabout 420 ms a step on this card"
    )
    yield clock(
        PlanReady(
            plan,
            12 * GIB if gpu else 0,
            {k: int(v * GIB) if gpu else 0 for k, v in PLAN.items()},
            {"weights": int(2.4 * GIB)},
        ),
        1.2,
    )
    yield from phase("load", 4.0, 0, "SD 1.5, 860 M parameters")
    if with_prior:
        yield from phase("class images", 240.0, 200, "200 class images drawn")
    yield from phase("cache images", 9.0, 205, "205 pictures encoded, 0 from cache")
    yield from phase("cache text", 1.0, 3, "3 prompts")
    yield clock(Notice("the text encoders and the VAE left the card: 0.4 GiB freed"), 0)
    yield from phase("train", 0.0, steps, f"{steps} steps", inside=training())
    if status == "done":
        yield from phase("save", 7.0, 1)
        yield from phase("export", 14.0, 2, "2 formats, loaded back and equal")
        yield clock(Exported(str(run / "model"), "diffusers", "fp16", int(2.6 * GIB), 4.8e-4), 0)
        yield clock(Exported(str(run / "model.safetensors"), "single file", "fp16", int(2.0 * GIB), 4.8e-4), 0)
    done = steps if status == "done" else steps // 2 + 10
    text = f"The model is in {run.name}/model.\nDraw with it: python -m trainer sample --run {run.name} 'sks dog in a bucket'"
    error = "loss is nan at step 210; the last good checkpoint is step-000200" if status == "failed" else ""
    yield clock(
        Finished(
            status,
            done,
            clock.now - START,
            str(run),
            text if status == "done" else "Go on with --resume_from_checkpoint latest",
            error,
        ),
        0.1,
    )


class Clock:
    """Stamps events with a time that only moves when told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self, event: Event, seconds: float) -> Event:
        self.now += seconds
        return replace(event, time=self.now)


def play(recorded: Iterator[Event], seconds: float, until: str, controls: Controls) -> Iterator[Event]:
    """Events at the pace of the clock, in about `seconds`; stops for good in the middle of phase `until`."""
    held = list(recorded)
    pause = seconds / len(held)
    for event in held:
        if controls.quit:
            return
        while controls.pause and not controls.quit:
            time.sleep(0.05)
        yield replace(event, time=time.time())
        time.sleep(pause)
        if (
            until
            and isinstance(event, (PhaseProgress, Step))
            and getattr(event, "phase", "train") == until
            and (event.done if isinstance(event, PhaseProgress) else event.step) * 2 >= event.total
        ):
            while not controls.quit:
                time.sleep(0.1)
            return


if __name__ == "__main__":
    from trainer.readers import log, tui

    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--until", default="")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    controls = Controls()
    where = asked.folder or Path(tempfile.mkdtemp())
    stream = events(where, asked.steps, not asked.no_prior, not asked.cpu)
    tui.show(log.record(play(stream, asked.seconds, asked.until, controls)), controls, asked.mode)
