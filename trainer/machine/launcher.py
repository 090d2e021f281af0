"""One process a card: what a launcher says about this one, what becomes of it when the launcher has gone, and starting them
ourselves, through torch's elastic launcher.

`torchrun` and `accelerate launch` describe a process to itself in the same variables of its environment.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trainer.errors import ConfigError

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LINUX = hasattr(os, "sched_getaffinity")  # where a process may be kept from some of the cores
# What torch's launcher tells a process about itself and the others, and what accelerate would believe of MPI's.
TOLD = re.compile(
    r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
    r"|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_SIZE"
)


def expected() -> int:
    """How many processes the launcher started for this run, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is, before it has met the others. The first, 0, leads."""
    return int(os.environ.get("RANK", "0"))


def goes_on_alone(command: str) -> bool:
    """Whether this process is the one that does `command`, which one process does, however many a launcher started.

    The first is: it forgets the others, for whom libraries would wait. The others have nothing to do.
    """
    if expected() == 1:
        return True
    if rank() > 0:
        return False
    print(f"note: `{command}` runs in one process; the launcher started {expected()}.", file=sys.stderr)
    for name in filter(TOLD.fullmatch, list(os.environ)):
        del os.environ[name]
    return True


def end_with_launcher() -> None:
    """From now on this process ends when what started it has ended: a launcher that was killed (by Linux, when the RAM ran
    out) can end nobody, and its processes would wait for each other for half an hour, or train on where nobody can stop them.

    Not on Windows, where a process keeps the number of a parent that has ended.
    """
    if os.name != "nt":
        threading.Thread(target=_outlive, args=(os.getppid(),), name="launcher", daemon=True).start()


def _outlive(parent: int) -> None:
    """Wait until `parent` has ended; then end as a terminated run does, which saves, or at once where none has begun."""
    met = False
    while os.getppid() == parent:
        met = met or _among_others()
        time.sleep(1)
    among = _among_others()
    if met and not among:
        return  # another saw it first, all have saved and left, and this one is about to end
    does = "the run saves and ends" if among else f"card {rank()} ends; it had not met the others yet"
    fix = "the same line with --resume_from_checkpoint latest goes on" if among else "start the same line again"
    try:
        print(f"error: the launcher has ended, so {does}\n  fix: {fix}", file=sys.stderr, flush=True)
    finally:  # whoever read this may have gone with the launcher
        if among:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os._exit(2)  # the main thread waits inside of torch, where no signal reaches it


def _among_others() -> bool:
    """Whether this process has met the others and not left them. Imports nothing: before torch is there it has not."""
    initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", None)
    return initialized is not None and initialized()


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
    import psutil

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
