"""One process a card: what a launcher says about this one, and starting them ourselves, through torch's elastic launcher.

`torchrun` and `accelerate launch` describe a process to itself in the same variables of its environment.
"""

from __future__ import annotations

import os
import signal
import sys

from trainer.errors import ConfigError

LINUX = hasattr(os, "sched_getaffinity")  # where a process may be kept from some of the cores


def expected() -> int:
    """How many processes the launcher started for this run, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is, before it has met the others. The first, 0, leads."""
    return int(os.environ.get("RANK", "0"))


def left_alone() -> str:
    """What accelerate did not say: on CPUs it begins one process, whatever --num_processes asks for (more it leaves to MPI)."""
    if expected() > 1 or os.environ.get("ACCELERATE_USE_CPU") != "True" or "MASTER_ADDR" not in os.environ:
        return ""
    return (
        "accelerate launch began one process, as it does on CPUs whatever --num_processes says; --cards 2 begins two."
    )


def require(cards: int, device: str) -> None:
    """ConfigError where fewer than `cards` are there: the processes would be started, and none of them could say why it failed."""
    import torch

    on_cards = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    found = torch.cuda.device_count() if on_cards else len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    if cards > found:
        what = "cards" if on_cards else "cores for CPU processes"
        there = f"there are {found}" if found > 1 else f"there is {found}" if found else "there are none"
        raise ConfigError(f"--cards {cards} asks for {cards} {what}, and {there}", f"use --cards {max(found, 1)}")


def launch(cards: int, words: list[str]) -> int:
    """Run `python -m trainer WORDS` once a card; returns 0, the exit code of the first that failed, or 2 where a signal ended it.

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
        rank, first = failure.get_first_failure()
        if first.exitcode > 0:
            return first.exitcode  # it has said itself what happened
        print(_ended(rank, signal.Signals(-first.exitcode)), file=sys.stderr)
        return 2
    return 0


def _ended(card: int, by: signal.Signals) -> str:
    """What is to be said of a process that had no time to say it."""
    cause = "; Linux does this to a process when the RAM runs out" if by == signal.SIGKILL else ""
    return (
        f"error: the process of card {card} was ended by {by.name}{cause}, and the others with it\n"
        "  fix: the same line with --resume_from_checkpoint latest goes on from the last checkpoint"
    )
