"""Checkpoints of a run: written only while everything in them is a number, and gone back to."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.errors import Diverged
from trainer.events import CheckpointSaved, Notice, Stage
from trainer.out import checkpoint
from trainer.run.habits import Habits
from trainer.run.trained import Trained


def save(trained: Trained, kind: str, habits: Habits) -> Stage[Path]:
    """A checkpoint of the step just done, and its folder; of older ones as many stay as the habits say. Its losses have
    been looked at: a model that diverged is never saved."""
    started = time.perf_counter()
    if trained.resumed == checkpoint.folder(trained.folder, trained.step):
        path = trained.resumed  # read a moment ago: it holds just this
    else:
        path = _write(trained, habits)
    named = path.name.partition("-")[0]  # the last step's own checkpoint takes no place of those that were asked for
    checkpoint.prune(trained.folder, habits.save_limit, trained.best if habits.keep_best else None, named)
    yield CheckpointSaved(trained.step, str(path), checkpoint.size_bytes(path), time.perf_counter() - started, kind)
    return path


def _write(trained: Trained, habits: Habits) -> Path:
    state = trained.state()
    if broken := state.broken():
        raise Diverged(
            f"After step {trained.step} weights or moments are no longer numbers ({broken}); this checkpoint is not written, "
            "earlier ones are intact.\n  fix: lower --learning_rate, then --resume_from_checkpoint latest."
        )
    checkpoint.require_space(trained.folder, state.bytes, "a checkpoint")
    return checkpoint.save(trained.folder, state, habits.name(trained.step))


def resume(trained: Trained, point: Path) -> Stage[None]:
    """Everything as it was when `point` was written."""
    yield from trained.restore(point)
    yield Notice(f"Resumed from {point} after step {trained.step}.")
