"""Small pictures for the tests of photos, caches and class images: real files, made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data import photos as data
from trainer.data.account import PhotoSet
from trainer.events import Event
from trainer.settings import overlay
from trainer.settings.config import Config

SUBJECTS = Path(__file__).resolve().parents[2] / "shared" / "subjects"


def noise_picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Coloured noise, coarse enough that resizing keeps some of it."""
    grid = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def folder_of(path: Path, count: int = 3, size: tuple[int, int] = (96, 80)) -> Path:
    """`count` different PNG photos in `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise_picture(size, index).save(path / f"{index:02d}.png")
    return path


def scan(folder: Path, resolution: int = 64, divides: int = 64, **knobs: object) -> PhotoSet:
    """The account of `folder` under [data] settings that a person typed."""
    knobs = {"class_name": "dog"} | knobs
    values = {f"data.{name}": value for name, value in knobs.items() if value is not None}
    return data.scan(overlay.load({"data.instance_data_dir": str(folder), **values}), resolution, divides)


def settings(folder: Path, **changes: object) -> Config:
    """A small run on `folder`; changes are "section.knob" values with the dot written as two underscores."""
    config = Config()
    config.data.instance_data_dir, config.data.class_name, config.data.resolution = str(folder), "dog", 64
    config.prior.num_class_images, config.prior.sample_steps = 3, 2
    for name, value in changes.items():
        section, knob = name.split("__")
        setattr(getattr(config, section), knob, value)
    return config


def finish(stage: Iterator[Event]) -> tuple[list[Event], object]:
    """(all events of a stage, what it returned)."""
    events = []
    while True:
        try:
            events.append(next(stage))
        except StopIteration as stop:
            return events, stop.value
