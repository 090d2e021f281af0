"""Overfitting and drift, measured while training runs, within 5 % of its time where nobody fixes the steps.

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

from trainer.data.pictures import Unreadable
from trainer.data.pictures import read as read_picture
from trainer.errors import ConfigError
from trainer.events import Controls, Event, Meters, Notice, Stage
from trainer.files.regular import json_object
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
        self.controls = Controls()  # who asks to stop is obeyed in the middle of a reading; a run puts its own here

    def begin(self) -> Iterator[Event]:
        """Read the base model, which all later readings are compared with. What an earlier run left here is not this one's."""
        for picture in self.folder.glob("base-*.png"):
            picture.unlink()
        yield from self.read(0)
        self._keep_base()
        self._count_from_now()

    def go_on(self, folder: Path, step: int) -> Iterator[Event]:
        """Go on with the readings that the resumed run left in `folder`, up to `step`: what came after it is still to
        come. The weights are still the base model's, which is read now where it was not then."""
        history = yield from self._history(folder)
        if not history:
            yield from self.begin()
            return
        for at, values in history:
            if at <= step:
                self.rulings.take(at, values)
        if (pictures := self.meters["pictures"]) is not None:
            places = [folder / f"base-{index}.png" for index in range(len(pictures.prompts))]
            found = [_picture(place) for place in places]
            if None in found:  # the weights are still the base model's
                yield Notice(
                    "Pictures of the base model are missing or damaged: they are drawn again.", level="warning"
                )
                pictures.read(self.controls)
            else:
                pictures.base = found
        self._keep()
        self._keep_base()
        self._count_from_now()

    def _history(self, folder: Path) -> Stage[list]:
        """The readings a run left in `folder`; none where there are none, or where they are damaged."""
        if not (kept := folder / "readings.json").is_file():
            return []
        try:
            history = json_object(kept, "").get("history")
            if history and isinstance(history, list) and all(_is_reading(each) for each in history):
                return history
        except ConfigError:
            history = None
        if history != []:
            yield Notice(f"{kept} is damaged: the guard reads the base model again.", level="warning")
        return []

    def _count_from_now(self) -> None:
        """The base model is read once and before training, so its time does not count."""
        self.begun, self.spent = time.perf_counter(), dict.fromkeys(self.spent, 0.0)

    def due(self, step: int) -> bool:
        return bool(self._affordable(step))

    def missed(self, step: int) -> bool:
        """Whether a reading of `step`, where readings have fixed steps, is still to be taken."""
        every = self.settings.interval
        return (
            every is not None and step > 0 and step % every == 0 and all(at != step for at, _ in self.rulings.history)
        )

    def _affordable(self, step: int) -> list[str]:
        at_hand = [kind for kind, meter in self.meters.items() if meter is not None]
        if step == 0:
            return at_hand
        if self.settings.interval is not None:
            return at_hand if step % self.settings.interval == 0 else []
        elapsed = time.perf_counter() - self.begun
        return [kind for kind in at_hand if self.spent[kind] + self.cost[kind] <= SHARE[kind] * elapsed]

    def read(self, step: int) -> Iterator[Event]:
        """Take the readings that are due; ends with a Meters event. Left without one where somebody asks to stop: the next
        start takes it."""
        values: dict[str, float] = {}
        self.stop, self.improved = "", False
        for kind in self._affordable(step):
            started = time.perf_counter()
            if (found := self.meters[kind].read(self.controls)) is None:
                return
            values |= found
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

    def _keep(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tidy(self.folder)
        with whole(self.folder / "readings.json") as part:
            state = {"history": self.rulings.history, "best_step": self.rulings.best_step}
            part.write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _keep_base(self) -> None:
        """The base model's pictures, for when the run is resumed: its weights are gone then."""
        for index, picture in enumerate(pictures.base if (pictures := self.meters["pictures"]) else []):
            with whole(self.folder / f"base-{index}.png") as part:
                picture.save(part, "PNG")


def _is_reading(found: object) -> bool:
    """Whether this is a step and its values, as JSON gives them back."""
    if not isinstance(found, list) or len(found) != 2 or type(found[0]) is not int or not isinstance(found[1], dict):
        return False
    return all(type(value) in (int, float) for value in found[1].values())


def _picture(place: Path) -> Image.Image | None:
    try:
        return read_picture(place).rgb
    except Unreadable:
        return None
