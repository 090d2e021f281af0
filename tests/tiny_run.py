"""Whole runs of tiny models for the tests: the words of a command line, its events, and what is found among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.cli.parse import parse
from trainer.events import Controls, Event
from trainer.readers import log
from trainer.run import stages
from trainer.run.prepare import Run, prepare


def words(place: Path, *more: object, model: str = "sd1", run: str = "run") -> list[str]:
    """`place`: a folder with models and photos, as the fixture of that name makes it."""
    base = [
        *("--model.name", place / model),
        *("--instance_data_dir", place / "photos"),
        *("--class_name", "dog"),
        *("--resolution", 64),
        *("--num_class_images", 2),
        *("--sample_steps", 2),
        *("--max_train_steps", 4),
        *("--num_validation_images", 1),
        *("--sample.steps", 2),
        *("--cache_dir", place / "cache"),
        *("--output_dir", place / run),
        *(() if "--watch" in more else ("--no-watch",)),
    ]
    return [str(word) for word in [*base, *more]]


def prepared(place: Path, *more: object, **where: str) -> Run:
    return prepare(parse(words(place, *more, **where)).config())


def started(place: Path, *more: object, controls: Controls | None = None, **where: str) -> Iterator[Event]:
    """A run's events as they come."""
    config = parse(words(place, *more, **where)).config()
    return log.record(stages.run(config, controls or Controls()), config)


def events(place: Path, *more: object, controls: Controls | None = None, **where: str) -> list[Event]:
    return list(started(place, *more, controls=controls, **where))


def of(kind: type[Event], found: list[Event]) -> list:
    return [event for event in found if isinstance(event, kind)]
