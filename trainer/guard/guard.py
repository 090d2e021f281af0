"""Overfitting and drift, measured while training runs and within 5 % of its time.

Two kinds of readings, taken whenever their share of the time so far allows it: losses on fixed noise and timesteps (a
crop or photo that is never trained on, a crop that is, class images that are not), and, where a judge is at hand,
pictures of fixed prompts and seeds. Everything is compared with the base model, read once before the first step.
A reading draws from its own generators and changes nothing, so training is the same with and without the guard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from trainer.events import Event, Meters, Notice
from trainer.files.whole import tidy, whole
from trainer.guard.meters import Losses, Pictures
from trainer.guard.rulings import Rulings
from trainer.settings.config import Guard as Settings

SHARE = {"losses": 0.02, "pictures": 0.03}  # of the training time; together the promised 5 %


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
