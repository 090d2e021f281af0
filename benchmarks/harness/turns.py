"""Programs that train beside each other and take turns: while one steps the others stand still (SIGSTOP).

A step of a small model takes a tenth of a second, its program's start a hundred times that, and what else the machine does
changes by the minute. Two whole jobs, one after the other, would compare the weather. Here every program starts once, and
then each runs a few steps in turn, again and again: what slows one slows the others of the same round. A program's steps
are counted in what it writes anyway, its progress bar or its log, and only whole steps inside a turn are timed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import jobs

POLL = 0.01  # seconds between two looks at a file: fewer looks see steps late, more take time from the steps
TAIL = 4096  # bytes at its end that hold the last step's line
PATIENCE = 300  # seconds for one step, or for a start


class Ended(Exception):
    """A program ended, or stood still, before its last turn; `said` is the end of its output."""

    def __init__(self, name: str, code: int | None, said: str):
        super().__init__(said)
        self.name, self.code, self.said = name, code, said


@dataclass(frozen=True)
class Runner:
    """command: what to run, and where; file: what it writes its steps to (None: its output); step: a pattern whose group is
    the number of the last one that is done."""

    name: str
    command: Sequence[object]
    step: str
    folder: Path | None = None
    file: Path | None = None


class Running:
    """A runner's process, which steps only inside `turn`."""

    def __init__(self, runner: Runner, place: Path):
        self.runner, self.output = runner, place / f"{runner.name}.out"
        self.file = runner.file or self.output
        self.pattern = re.compile(runner.step.encode())
        self.last = 0
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, runner.command)],
                cwd=runner.folder,
                env=jobs.environment(own=runner.folder is None),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def reach(self, step: int) -> tuple[int, float]:
        """Wait until that step is done; which one was seen (a poll may find a later one), and when."""
        began = time.perf_counter()
        while (seen := self._seen()) < step:
            if self.process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise Ended(self.runner.name, self.process.poll(), self._tail(self.output).decode(errors="replace"))
            time.sleep(POLL)
        return seen, time.perf_counter()

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        self.last = self._seen()

    def turn(self, steps: int) -> tuple[int, float]:
        """How many steps were timed, at least `steps`, and their seconds. The one that the last pause cut in two comes
        first and is not among them."""
        os.kill(self.process.pid, signal.SIGCONT)
        first, start = self.reach(self.last + 1)
        last, end = self.reach(first + steps)
        self.pause()
        return last - first, end - start

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _seen(self) -> int:
        found = self.pattern.findall(self._tail(self.file))
        return max(self.last, int(found[-1])) if found else self.last

    def _tail(self, path: Path) -> bytes:
        if not path.exists():
            return b""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read()


@dataclass(frozen=True)
class Plan:
    """warm: steps before the first round. A round is `turns` turns of `steps` steps of each runner."""

    warm: int
    steps: int
    turns: int
    rounds: int

    @property
    def total(self) -> int:
        """Steps to ask of a program so that it has not finished when its last turn ends, whatever a poll was late by."""
        return self.warm + 2 * self.rounds * self.turns * (self.steps + 2)


def take(runners: Sequence[Runner], place: Path, plan: Plan) -> dict[str, list[float]]:
    """Seconds of a step in each round, by name. Every other turn goes through the runners backwards, so that none always
    follows the same one."""
    found: dict[str, list[float]] = {runner.name: [] for runner in runners}
    with ExitStack() as alive:
        running = [alive.enter_context(_started(runner, place, plan.warm)) for runner in runners]
        for _ in range(plan.rounds):
            timed: dict[str, list[tuple[int, float]]] = {runner.name: [] for runner in runners}
            for index in range(plan.turns):
                for each in running if index % 2 == 0 else reversed(running):
                    timed[each.runner.name].append(each.turn(plan.steps))
            for name, turns in timed.items():
                steps, seconds = map(sum, zip(*turns, strict=True))
                found[name].append(seconds / steps)
    return found


@contextmanager
def _started(runner: Runner, place: Path, warm: int) -> Iterator[Running]:
    running = Running(runner, place)
    try:
        running.reach(warm)
        running.pause()
        yield running
    finally:
        running.end()
