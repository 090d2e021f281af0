"""What a run writes to disk: caches, class images, checkpoints and exports, from counts and shapes."""

from __future__ import annotations

from trainer.plan.phases import Phases
from trainer.settings.config import Config

PNG_SHARE = 0.6  # of the bytes of its pixels that a generated picture keeps as PNG: assumed


def disk_bytes(config: Config, phases: Phases, saved_bytes: int) -> int:
    """`saved_bytes`: the weights and optimizer state of one checkpoint."""
    (width, height), defaults = phases.shapes.size, phases.parts.family.defaults
    pictures = int(phases.class_images() * 3 * width * height * PNG_SHARE)
    checkpoints = 1
    if config.checkpoint.checkpointing_steps:
        checkpoints = -(-(config.train.max_train_steps or defaults.steps) // config.checkpoint.checkpointing_steps)
    checkpoints = min(checkpoints, config.checkpoint.checkpoints_total_limit or checkpoints)
    whole = sum(phases.sizes.values()) // 4 * (4 if config.export.precision == "fp32" else 2)
    formats = len(config.export.formats or ("", ""))
    exports = formats * (whole if config.train.method == "full" else saved_bytes)
    return phases.latents() + pictures + checkpoints * saved_bytes + exports
