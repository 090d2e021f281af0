"""What the doctor says about one thing: works, is absent, or is broken, and then what mends it and what works without it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.machine import libraries, mending

# a bad install shows itself in many ways: compilers and shared libraries have errors of their own
BROKEN = (Exception,)


@dataclass(frozen=True)
class Line:
    """One finding.

    state: "ok", "off" (optional and absent), "lost" (broken, and training works without it) or "bad" (training does not work)
    """

    name: str
    state: str
    detail: str
    fix: str = ""
    without: str = ""  # of what is lost: what works all the same


def tried(name: str, act: Callable[[], str], fix: Callable[[], str], without: str = "") -> Line:
    """The line of a capability: `act` exercises it and gives the detail, or raises. Then a library that broke as it was
    imported is to be mended, whoever imported it, else `fix` knows. Without `without`, training needs it."""
    try:
        with _quiet():
            return Line(name, "ok", act())
    except BROKEN as error:
        broken = mending.culprit(error)
        mends = libraries.mended(broken) if broken else fix()
        return Line(name, "lost" if without else "bad", f"does not work here: {first(error)}", mends, without)


@contextmanager
def _quiet() -> Iterator[None]:
    """Remarks of libraries would stand between the lines; what fails is raised, and has its line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def first(error: BaseException | Warning) -> str:
    """The first line of an error, short enough for a table."""
    text = mending.reason(error)
    return text if len(text) <= 90 else text[:87] + "..."
