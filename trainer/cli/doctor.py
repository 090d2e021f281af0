"""`python -m trainer doctor`: what is installed and what really works here, each failing line with its fix.

Nothing is looked up that can be run: an installed package that crashes in its first step is the usual surprise. So every
capability of a run is exercised on tiny real modules (`workings`, `arithmetic`), and what fails costs its own line only.
Exit code 1 only where training itself does not work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

from trainer.cli.finding import BROKEN, Line, first
from trainer.cli.installed import versions
from trainer.machine import libraries
from trainer.settings.config import Config

Check = Callable[[Config], Iterator[Line]]
PARTS = {  # title -> module and function; imported in their turn: where torch is missing, the first part still says so
    "Card": ("installed", "card"),
    "Attention, forward and backward": ("arithmetic", "attention"),
    "Optimizers, three real steps": ("arithmetic", "optimizers"),
    "Kernels": ("arithmetic", "kernels"),
    "A run's work, on tiny models": ("workings", "workings"),
    "Disk": ("installed", "disk"),
}


def main(config: Config) -> int:
    hidden = libraries.set_aside()  # before anything that would stumble over them is imported
    checks: dict[str, Check] = {"Installed": lambda config: versions(config, hidden)}
    checks |= {title: lazily(*place) for title, place in PARTS.items()}
    lines: list[Line] = []
    for title, check in checks.items():
        print(title)
        for line in guarded(title, check, config):
            lines.append(line)
            print(f"  {_mark(line.state)} {line.name:<22} {line.detail}", flush=True)
            if line.fix:
                print(f"       fix: {line.fix}", flush=True)
    print("\n" + summary(lines))
    return 1 if any(line.state == "bad" for line in lines) else 0


def lazily(module: str, name: str) -> Check:
    def check(config: Config) -> Iterator[Line]:
        yield from getattr(import_module(f"trainer.cli.{module}"), name)(config)

    return check


def guarded(title: str, check: Check, config: Config) -> Iterator[Line]:
    """The lines of `check`; where it breaks off, a line of its own says why."""
    try:
        yield from check(config)
    except BROKEN as error:
        yield Line(title.partition(",")[0].lower(), "bad", f"cannot be tried: {first(error)}", "mend what is red above")


def summary(lines: list[Line]) -> str:
    """What is broken, what works without it, and whether training works."""
    bad = [line.name for line in lines if line.state == "bad"]
    lost = [line for line in lines if line.state == "lost"]
    said = [f"Broken: {', '.join(line.name for line in lines if line.state in ('bad', 'lost'))}"] if bad or lost else []
    said += [f"  without {line.name}: {line.without}" for line in lost]
    if bad:
        said.append(f"Training does not work here until these are mended: {', '.join(bad)}")
    else:
        said.append("Training works here." if lost else "Everything that training needs works here.")
    return "\n".join(said)


def _mark(state: str) -> str:
    words = {"ok": "ok  ", "off": "-   ", "lost": "LOST", "bad": "BAD "}
    colors = {"ok": "\x1b[32m", "off": "\x1b[2m", "lost": "\x1b[31m", "bad": "\x1b[31m"}
    shown = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"{colors[state]}{words[state]}\x1b[0m" if shown else words[state]
