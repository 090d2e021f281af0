"""What the guard reads: losses on noise that stays the same, and pictures of prompts and seeds that stay the same.

Only then do two readings differ by what was learned between them. A reading draws from generators of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.dataset import Dataset, Example
from trainer.data.photos import PhotoSet, class_prompt
from trainer.data.pictures import read
from trainer.draw.painter import Painter
from trainer.events import Controls, outcome, while_wanted
from trainer.guard import judge
from trainer.machine.phase import Phase
from trainer.objective.loss import Objective
from trainer.settings.config import Config
from trainer.step.engine import Engine

LEVELS = 8  # timesteps of a held-out loss, evenly spread
COPY = 0.93  # correlation of 16 x 16 thumbnails above which a picture repeats a photo
STEPS = 20  # of a picture, at most
UNRELATED = ("a photo of a car", "a photo of a tree", "a photo of a house")
Chunk = tuple[dict[str, Tensor], Tensor]  # what the engine reads, and what it should answer


@dataclass(frozen=True)
class Probe:
    """Noised rows of any examples, the same at every reading: LEVELS timesteps, noise from `seed`.

    rows: pictures in one forward, no more than a training micro-batch has
    """

    dataset: Dataset
    objective: Objective
    rows: int
    seed: int

    def of(self, examples: Sequence[Example]) -> list[Chunk]:
        """A noised row of each of `examples`, of few as many as there are LEVELS, in chunks of one shape."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = [examples[i % len(examples)] for i in range(max(LEVELS, len(examples)))]
        chosen.sort(key=lambda example: example.mean.shape)
        chunks = []
        for start in range(0, len(chosen), self.rows):
            part = [e for e in chosen[start : start + self.rows] if e.mean.shape == chosen[start].mean.shape]
            levels = self.objective.noise.at([((start + i) % LEVELS + 0.5) / LEVELS for i in range(len(part))])
            latents = self.dataset.latents.scaled(torch.stack([example.mean.float() for example in part]))
            noised = self.objective.noised(latents, torch.randn(latents.shape, generator=generator), levels)
            given = {"sample": noised.sample, "timestep": levels}
            chunks.append((given | self.dataset.conditions([e.prompt for e in part], part), noised.target))
        return chunks


@dataclass(frozen=True)
class Losses:
    """Mean squared errors on a probe's rows, by set: "held-out", "seen" and, where class images are held out, "class"."""

    engine: Engine
    sets: dict[str, list[Chunk]]

    @classmethod
    def of(cls, engine: Engine, probe: Probe, examples: dict[str, Sequence[Example]]) -> Losses:
        return cls(engine, {name: probe.of(found) for name, found in examples.items() if found})

    def read(self, controls: Controls) -> dict[str, float] | None:
        """None where somebody asked to stop in between."""
        values = {}
        for name, chunks in self.sets.items():
            errors = []
            for given, target in chunks:
                if controls.quit:
                    return None
                errors.append(((self.engine.forward(given).float().cpu() - target) ** 2).mean(dim=(1, 2, 3)))
            values[f"{name} loss"] = torch.cat(errors).mean().item()
        return values


def prompts_for(instance_prompt: str, class_prompt: str) -> list[str]:
    """Three of the subject, two of the class, two of neither."""
    snow = f"{instance_prompt} in the snow"
    return [instance_prompt, instance_prompt, snow, class_prompt, class_prompt, *_unrelated(class_prompt)]


def _unrelated(class_prompt: str) -> list[str]:
    return [prompt for prompt in UNRELATED if prompt != class_prompt][:2]


def prompts(config: Config) -> list[str]:
    """Every prompt that pictures for the judge may need, so that its embedding is cached with the others."""
    named = config.data.class_name or config.prior.class_prompt
    if not config.guard.watch or config.guard.judge == "none" or not named:
        return []
    return [*prompts_for(config.data.instance_prompt, class_prompt(config)), ""]


@dataclass
class Pictures:
    """Similarity, diversity and drift of a few pictures. `draw(prompts, seeds, controls)` paints the weights as they are;
    None where somebody asked to stop in between."""

    judge: judge.Judge
    draw: Callable[[list[str], list[int], Controls], list[Image.Image] | None]
    photos: list[Image.Image]
    instance_prompt: str
    class_prompt: str
    base: list[Image.Image] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, painter: Painter, photos: PhotoSet) -> Pictures | None:
        """None where no judge can look, or there is no class to compare with. A reading takes fewer steps than a preview."""
        name = config.guard.judge
        if name == "auto":
            name = "demo" if config.model.name == "demo" else "none"
        if name == "none" or not prompts(config):
            return None
        quick = replace(painter, look=replace(painter.look, steps=min(STEPS, painter.look.steps)))

        def draw(prompts: list[str], seeds: list[int], controls: Controls) -> list[Image.Image] | None:
            steps = quick.paint(prompts, seeds, Phase("sample", painter.device))  # whose events nobody sees
            return outcome(while_wanted(steps, controls))

        return cls(
            judge.load(name),
            draw,
            [read(Path(photo.path)).rgb for photo in photos.photos],
            config.data.instance_prompt,
            class_prompt(config),
        )

    @property
    def prompts(self) -> list[str]:
        return prompts_for(self.instance_prompt, self.class_prompt)

    def read(self, controls: Controls) -> dict[str, float] | None:
        prompts = self.prompts
        drawn = self.draw(prompts, list(range(len(prompts))), controls)
        if drawn is None:
            return None
        self.base = self.base or drawn
        subject, rest, before = drawn[:3], drawn[3:], self.base[3:]
        values = {
            "subject": judge.subject_similarity(self.judge, subject, self.photos).value,
            "diversity": judge.diversity(self.judge, rest[:2]),
            "drift": judge.drift(self.judge, before, rest),
            "class drift": judge.drift(self.judge, before[:2], rest[:2]),
            "unrelated drift": judge.drift(self.judge, before[2:], rest[2:]),
            "copies": repeats(subject, self.photos),
        }
        said = [
            f"{self.class_prompt} in the snow",
            self.class_prompt,
            self.class_prompt,
            *_unrelated(self.class_prompt),
        ]
        try:
            values["prompt"] = judge.prompt_similarity(self.judge, drawn[2:], said).value
        except ValueError:  # DINO and EfficientNet cannot read
            values["prompt"] = 0.0
        return values


def repeats(pictures: Sequence[Image.Image], photos: Sequence[Image.Image]) -> float:
    """Share of `pictures` that are nearly one of `photos`, mirrored or not, background and all."""
    known = torch.cat(
        [_thumbnails(photos), _thumbnails([photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos])]
    )
    return ((_thumbnails(pictures) @ known.T).amax(1) > COPY).float().mean().item()


def _thumbnails(pictures: Sequence[Image.Image]) -> Tensor:
    """(N, 768), mean-free and of length 1, so that products are correlations."""
    small = torch.stack(
        [
            torch.from_numpy(np.asarray(p.convert("RGB").resize((16, 16), Image.Resampling.BOX), dtype=np.float32))
            for p in pictures
        ]
    )
    flat = small.flatten(1)
    return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)
