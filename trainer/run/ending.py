"""How a run ends, whatever happens to it: its status, what was measured, where everything is, and what to type next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

import torch

from trainer.errors import ConfigError, Diverged
from trainer.events import (
    CheckpointSaved,
    Controls,
    Event,
    Finished,
    Notice,
    PhaseEnded,
    PlanReady,
    Stage,
    Step,
    watched,
)
from trainer.files import disk
from trainer.plan.here import measured
from trainer.run.prepare import Run


class Quit(Exception):
    """Somebody asked to stop before there was anything to save."""


class Ending:
    """Watches a run's work and says what became of it.

    status: "done", "interrupted" or "failed"; stopped: why training ended early, where it did; error: what went wrong
    """

    def __init__(self, run: Run, begun: float):
        self.run, self.begun = run, begun
        self.status, self.stopped, self.error = "failed", "", ""
        self.step = 0
        self.peaks: dict[str, int] = {}  # phase -> bytes on the card

    def watch(self, work: Stage[str], controls: Controls) -> Stage[None]:
        """The events of `work`; what stops it short becomes words instead of an exception."""
        try:
            self.stopped = yield from watched(work, self._see)
            self.run.team.leave()
            self.status = "interrupted" if controls.quit else "done"
        except (Quit, KeyboardInterrupt):
            self.status = "interrupted"
        except Diverged as failure:  # of losses that all cards have: the first says it
            self.error = str(failure) if self.run.team.leads else ""
        except ConfigError as failure:
            self.error = str(failure)
        except torch.OutOfMemoryError as failure:
            fix = "a smaller --preset (or --vram_gb), or close other programs; then --resume_from_checkpoint latest"
            self.error = f"{str(failure).splitlines()[0]}\n  fix: {fix}"
        except RuntimeError as failure:
            if not self.run.team.lost(failure):
                raise
            self.error = (
                "The process of another card ended in the middle of a step; what it had to say stands beside this.\n"
                "  fix: mend what it says; then --resume_from_checkpoint latest goes on from the last checkpoint"
            )
        except OSError as failure:
            if (refused := disk.refusal(failure)) is None:
                raise
            self.error = str(refused)

    def _see(self, event: Event) -> None:
        if isinstance(event, (Step, CheckpointSaved)):  # a run resumed at its end takes no step
            self.step = event.step
        if isinstance(event, PlanReady):
            self.peaks.pop("train", None)  # of a plan that did not hold
        if isinstance(event, PhaseEnded):
            self.peaks[event.phase] = max(self.peaks.get(event.phase, 0), event.vram_peak_bytes)

    def against_plan(self) -> Iterator[Event]:
        """Plan and measurement side by side; a deviation comes with a line for a bug report."""
        if any(self.peaks.values()):
            text, notices = measured.compare(self.run.plan, self.peaks)
            yield Notice(text)
            yield from notices

    def finished(self) -> Finished:
        seconds = time.perf_counter() - self.begun
        return Finished(self.status, self.step, seconds, str(self.run.folder), self._farewell(), self.error)

    def _farewell(self) -> str:
        """Where everything is, and what to type next."""
        folder = self.run.folder
        if self.status != "done":
            words = ["--config", str(folder / "config.toml"), "--output_dir", str(folder)]
            again = shlex.join(["python", "-m", "trainer", *words, "--resume_from_checkpoint", "latest"])
            return f"The run is in {folder}.\nGo on with: {again}"
        lines = [
            *([f"stopped early: {self.stopped}"] if self.stopped else []),
            f"model       {folder if self.run.config.run.layout == 'diffusers' else folder / 'model'}",
            *([f"pictures    {folder / 'samples'}"] if (folder / "samples").is_dir() else []),
            f"settings    {folder / 'config.toml'}",
            f"log         {folder / 'log.jsonl'}",
            "draw more:  "
            + shlex.join(["python", "-m", "trainer", "sample", str(folder), "--prompt", self.run.photos.prompts[0]]),
        ]
        if self.run.config.model.name == "demo":
            lines.append("your own:   python -m trainer --preset 12gb --instance_data_dir my_photos --class_name dog")
        return "\n".join(lines)
