"""Overfitting and drift, measured while training runs and within 5 % of its time.

Two kinds of readings, taken whenever their share of the time so far allows it: losses on fixed noise and timesteps (a
crop or photo that is never trained on, a crop that is, class images that are not), and, where a judge is at hand,
pictures of fixed prompts and seeds. Everything is compared with the base model, read once before the first step.
A reading draws from its own generators and changes nothing, so training is the same with and without the guard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data import crops
from trainer.data.crops import View
from trainer.data.dataset import Dataset, Example
from trainer.data.photos import Photo, PhotoSet, class_prompt
from trainer.events import Event, Meters, Notice
from trainer.files.whole import tidy, whole
from trainer.guard import judge
from trainer.guard.rulings import Rulings
from trainer.objective.loss import Objective
from trainer.settings.config import Config
from trainer.settings.config import Guard as Settings
from trainer.step.engine import Engine

SHARE = {"losses": 0.02, "pictures": 0.03}  # of the training time; together the promised 5 %
LEVELS = 8  # timesteps of a held-out loss, evenly spread
ENOUGH_PHOTOS = 8  # from here on one whole photo can be spared; below, a crop of each is held out
COPY = 0.93  # correlation of 16 x 16 thumbnails above which a picture repeats a photo
UNRELATED = ("a photo of a car", "a photo of a tree", "a photo of a house")


# ------------------------------------------------------------------------------------------------- what is held out


def hold_out(photos: PhotoSet) -> tuple[PhotoSet, Photo | None]:
    """The photos to train on and one to keep back, where there are enough; which one follows from the bytes alone."""
    if len(photos.photos) < ENOUGH_PHOTOS:
        return photos, None
    spared = min(photos.photos, key=lambda photo: photo.digest)
    return replace(photos, photos=tuple(p for p in photos.photos if p is not spared)), spared


def held_views(photos: PhotoSet, spared: Photo | None, size: tuple[int, int]) -> list[tuple[Photo, View]]:
    """Pictures that training never sees: the photo kept back, or a mirrored, closer, off-centre crop of each."""
    if spared is not None:
        return [(spared, crops.center(spared.size, size))]
    return [(photo, replace(crops.place(photo.size, size, 0.2, 0.2, 1.25), flip=True)) for photo in photos.photos]


def hold_out_class(dataset: Dataset) -> tuple[Dataset, list[Example]]:
    """Two class images are kept back where ten or more remain."""
    if dataset.class_count < 12:
        return dataset, []
    return replace(dataset, classes=dataset.classes[:-2]), dataset.classes[-2:]


def prompts(config: Config) -> list[str]:
    """Every prompt that pictures for the judge may need, so that its embedding is cached with the others."""
    if (
        not config.guard.watch
        or config.guard.judge == "none"
        or not (config.data.class_name or config.prior.class_prompt)
    ):
        return []
    return [*Pictures(None, None, [], config.data.instance_prompt, class_prompt(config)).prompts, ""]


# ------------------------------------------------------------------------------------------------------- the meters


@dataclass(frozen=True)
class Losses:
    """Mean squared errors on fixed noise, by set: "held-out", "seen" and, where class images are held out, "class"."""

    engine: Engine
    sets: dict[str, list[tuple[dict[str, Tensor], Tensor]]]

    @classmethod
    def of(
        cls,
        engine: Engine,
        dataset: Dataset,
        objective: Objective,
        scaling: float,
        examples: dict[str, Sequence[Example]],
        rows: int,
        seed: int,
    ) -> Losses:
        """`rows`: pictures in one forward, no more than a training micro-batch has."""
        return cls(
            engine,
            {name: _fixed(dataset, objective, scaling, found, rows, seed) for name, found in examples.items() if found},
        )

    def read(self) -> dict[str, float]:
        values = {}
        for name, chunks in self.sets.items():
            errors = [
                ((self.engine.forward(given).float().cpu() - target) ** 2).mean(dim=(1, 2, 3))
                for given, target in chunks
            ]
            values[f"{name} loss"] = torch.cat(errors).mean().item()
        return values


def _fixed(dataset: Dataset, objective: Objective, scaling: float, examples: Sequence[Example], rows: int, seed: int):
    """LEVELS noised rows over `examples`, in chunks of `rows` of one shape: the same noise at every reading."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [examples[i % len(examples)] for i in range(max(LEVELS, len(examples)))]
    chosen.sort(key=lambda example: example.mean.shape)
    chunks = []
    for start in range(0, len(chosen), rows):
        part = [e for e in chosen[start : start + rows] if e.mean.shape == chosen[start].mean.shape]
        levels = objective.noise.at([((start + i) % LEVELS + 0.5) / LEVELS for i in range(len(part))])
        latents = torch.stack([example.mean.float() for example in part]) * scaling
        noised = objective.noised(latents, torch.randn(latents.shape, generator=generator), levels)
        given = {"sample": noised.sample, "timestep": levels} | dataset.conditions([e.prompt for e in part], part)
        chunks.append((given, noised.target))
    return chunks


@dataclass
class Pictures:
    """Similarity, diversity and drift of a few pictures. `draw(prompts, seeds)` paints the weights as they are."""

    judge: judge.Judge
    draw: Callable[[list[str], list[int]], list[Image.Image]]
    photos: list[Image.Image]
    instance_prompt: str
    class_prompt: str
    base: list[Image.Image] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """Three of the subject, two of the class, two of neither."""
        return (
            [self.instance_prompt] * 2
            + [f"{self.instance_prompt} in the snow"]
            + [self.class_prompt] * 2
            + self.unrelated
        )

    @property
    def unrelated(self) -> list[str]:
        return [prompt for prompt in UNRELATED if prompt != self.class_prompt][:2]

    def read(self) -> dict[str, float]:
        prompts = self.prompts
        drawn = self.draw(prompts, list(range(len(prompts))))
        self.base = self.base or drawn
        subject, rest = drawn[:3], drawn[3:]
        values = {
            "subject": judge.subject_similarity(self.judge, subject, self.photos).value,
            "diversity": judge.diversity(self.judge, rest[:2]),
            "drift": judge.drift(self.judge, self.base[3:], rest),
            "copies": repeats(subject, self.photos),
        }
        said = [f"{self.class_prompt} in the snow", self.class_prompt, self.class_prompt, *self.unrelated]
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


# -------------------------------------------------------------------------------------------------------- the guard


class Guard:
    """Reads its meters when there is time for it, and says what they mean. Its history lies in RUN/guard/."""

    def __init__(self, run: Path, settings: Settings, losses: Losses, pictures: Pictures | None):
        self.folder, self.settings, self.meters = run / "guard", settings, {"losses": losses, "pictures": pictures}
        self.rulings = Rulings(settings)
        self.cost = {"losses": 0.0, "pictures": 0.0}  # seconds of the last reading
        self.spent = {"losses": 0.0, "pictures": 0.0}
        self.begun = time.perf_counter()
        self.stop = ""
        self.improved = False
        self.best: Path | None = None

    def begin(self) -> Iterator[Event]:
        """Read the base model, or go on with the readings of the run that is resumed."""
        if (self.folder / "readings.json").is_file():
            self._restore()
        else:
            yield from self.read(0)
        self.begun = time.perf_counter()
        self.spent = dict.fromkeys(self.spent, 0.0)  # the base model is read before training and once

    def due(self, step: int) -> bool:
        return bool(self._affordable(step))

    def _affordable(self, step: int) -> list[str]:
        at_hand = [kind for kind, meter in self.meters.items() if meter is not None]
        if step == 0:
            return at_hand
        if self.settings.interval is not None:
            return at_hand if step % self.settings.interval == 0 else []
        elapsed = time.perf_counter() - self.begun
        return [kind for kind in at_hand if self.spent[kind] + self.cost[kind] <= SHARE[kind] * elapsed]

    def read(self, step: int) -> Iterator[Event]:
        """Take the readings that are due; ends with a Meters event."""
        values: dict[str, float] = {}
        for kind in self._affordable(step):
            started = time.perf_counter()
            values |= self.meters[kind].read()
            self.cost[kind] = time.perf_counter() - started
            self.spent[kind] += self.cost[kind]
        self.improved, verdicts = self.rulings.take(step, values)
        self.stop = self.rulings.stops(verdicts)
        self._keep()
        verdict = (
            ""
            if not verdicts
            else f"stopped at step {step}: {self.stop}"
            if self.stop
            else f"would have stopped at step {step}: {'; '.join(verdicts)}"
        )
        if any(words.startswith("overfitting") for words in verdicts) and not self.stop:
            yield Notice(
                f"Step {step}: {next(w for w in verdicts if w.startswith('overfitting'))}.",
                "Fewer steps, a lower rate, or more varied photos help.",
                "warning",
            )
        yield Meters(step, values, verdict)

    def remember_best(self, checkpoint: Path) -> None:
        """This checkpoint is the best one: pruning leaves it, and the one before it may go."""
        self.best = checkpoint
        self._keep()

    def _keep(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.folder)
        state = {
            "history": self.rulings.history,
            "best_step": self.rulings.best_step,
            "stale": self.rulings.stale,
            "best_score": self.rulings.best_score if self.rulings.best_step is not None else None,
            "named": sorted(self.rulings.named),
            "best": str(self.best) if self.best else None,
        }
        with whole(self.folder / "readings.json") as part:
            part.write_text(json.dumps(state, indent=1), encoding="utf-8")
        pictures = self.meters["pictures"]
        for index, picture in enumerate(pictures.base if pictures else []):
            if not (self.folder / f"base-{index}.png").exists():
                with whole(self.folder / f"base-{index}.png") as part:
                    picture.save(part, "PNG")

    def _restore(self) -> None:
        state = json.loads((self.folder / "readings.json").read_text())
        self.rulings = Rulings(
            self.settings,
            [(step, values) for step, values in state["history"]],
            state["best_step"],
            float("-inf") if state["best_score"] is None else state["best_score"],
            state["stale"],
            set(state["named"]),
        )
        self.best = Path(state["best"]) if state["best"] else None
        if (pictures := self.meters["pictures"]) is not None:
            pictures.base = [
                Image.open(self.folder / f"base-{i}.png").convert("RGB")
                for i in range(len(pictures.prompts))
                if (self.folder / f"base-{i}.png").exists()
            ]
