"""One process a card: what a launcher says about this one, and starting them ourselves, through torch's elastic launcher.

`torchrun` and `accelerate launch` describe a process to itself in the same variables of its environment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from trainer.errors import ConfigError

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LINUX = hasattr(os, "sched_getaffinity")  # where a process may be kept from some of the cores


def expected() -> int:
    """How many processes the launcher started for this run, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is, before it has met the others. The first, 0, leads."""
    return int(os.environ.get("RANK", "0"))


def left_alone() -> str:
    """What accelerate did not say: on CPUs it begins one process, however many it is asked for (more it leaves to MPI)."""
    if expected() > 1 or os.environ.get("ACCELERATE_USE_CPU") != "True" or "MASTER_ADDR" not in os.environ:
        return ""
    return "accelerate launch began one process, as it does on CPUs however many it is asked for; --cards 2 begins two."


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

    Where one dies the others are ended, and nothing is started again: the run resumes from a checkpoint. 130 where somebody
    asked to stop.
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
        signals_to_handle="SIGQUIT",
    )
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # we say it ourselves
    try:
        with _passed_on():
            elastic_launch(config, sys.executable)("-m", "trainer", *words)
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode > 0:
            return first.exitcode  # it has said itself what happened
        print(_ended(rank, signal.Signals(-first.exitcode)), file=sys.stderr)
        return 2
    return 0


@contextmanager
def _passed_on() -> Iterator[None]:
    """What asks this process to stop asks each card's, and this one waits as long as they take to save: the elastic launcher
    would kill them after half a minute. Their sessions are their own, so Ctrl-C in a terminal reaches this process alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        cards = psutil.Process().children()
        if not cards:
            raise KeyboardInterrupt
        for card in cards:
            with suppress(psutil.NoSuchProcess):
                card.send_signal(number)

    asking = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
    before = {number: signal.signal(number, pass_on) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(card: int, by: signal.Signals) -> str:
    """What is to be said of a process that had no time to say it."""
    cause = "; Linux does this to a process when the RAM runs out" if by == signal.SIGKILL else ""
    return (
        f"error: the process of card {card} was ended by {by.name}{cause}, and the others with it\n"
        "  fix: the same line with --resume_from_checkpoint latest goes on from the last checkpoint"
    )
