"""What a run does on the way, every so many steps, and what it calls the checkpoints that it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.settings.config import Config


@dataclass(frozen=True)
class Habits:
    """What is done on the way: every so many steps, never after the last one, which has an ending of its own."""

    save_every: int | None = None
    save_limit: int | None = None
    sample_every: int | None = None
    keep_best: bool = False
    theirs: bool = False  # checkpoints that were due are called checkpoint-N, as by diffusers' scripts

    @classmethod
    def of(cls, config: Config) -> Habits:
        saves = config.checkpoint
        return cls(
            saves.checkpointing_steps,
            saves.checkpoints_total_limit,
            config.sample.validation_steps,
            config.guard.keep_best,
            config.run.layout == "diffusers",
        )

    def name(self, step: int) -> str:
        """What a checkpoint of `step` is called; empty: our own way."""
        return f"checkpoint-{step}" if self.theirs and self.save_every and step % self.save_every == 0 else ""
