"""One process a card: what a launcher says about this one, and starting them ourselves, through torch's elastic launcher.

`torchrun` and `accelerate launch` describe a process to itself in the same variables of its environment.
"""

from __future__ import annotations

import os
import sys


def expected() -> int:
    """How many processes the launcher started for this run, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is, before it has met the others. The first, 0, leads."""
    return int(os.environ.get("RANK", "0"))


def launch(cards: int, words: list[str]) -> int:
    """Run `python -m trainer WORDS` once a card; returns 0, or the exit code of the first that failed.

    Where one dies the others are ended, and nothing is started again: the run resumes from a checkpoint.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1,
        1,
        cards,
        run_id=f"snugbooth-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "trainer", *words)
    except ChildFailedError as failure:
        code = failure.get_first_failure()[1].exitcode
        return code if code > 0 else 1  # a process that a signal ended has a negative one
    return 0
