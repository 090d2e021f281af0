"""What can be known to be wrong before anything heavy is loaded."""

from __future__ import annotations

from trainer.config import Config


def check(config: Config, tolerant: bool = False) -> list[str]:
    return []
