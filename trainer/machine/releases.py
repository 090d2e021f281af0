"""Which versions were run together, and which of those in use here were not.

`trainer/constraints.txt` is the set that the tests were run on (`.ci/constrain` writes it); `pyproject.toml` holds the ranges
whose lower ends were run, too (`.ci/versions`). What lies between them is taken to work. What is older or newer was never
tried here: it may work as well, so it is named once at the start, with the one command that brings the tried versions back.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from trainer.machine.mending import CONSTRAINTS, command

DISTRIBUTION = "snugbooth"


@dataclass(frozen=True)
class Untried:
    """A package whose version lies outside of what was run."""

    name: str
    version: str
    tested: str  # the newest that was run
    asked: str  # the range that the project asks for

    def __str__(self) -> str:
        if Requirement(f"x{self.asked}").specifier.contains(self.version, prereleases=True):
            return f"{self.name} {self.version} (tested up to {self.tested})"
        return f"{self.name} {self.version} (asked for: {self.asked}; tested: {self.tested})"


def tested() -> dict[str, str]:
    """Package -> the version that was run, for this Python and system; those that it does not need are left out."""
    found = {}
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def asked(extras: bool = False) -> dict[str, Requirement]:
    """Package -> what the project asks for, with or without what only its extras bring."""
    project = CONSTRAINTS.parent.parent / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        always, more = (
            table["dependencies"],
            [text for extra in table["optional-dependencies"].values() for text in extra],
        )
    else:
        texts = metadata.requires(DISTRIBUTION) or []
        always, more = [t for t in texts if "extra ==" not in t], [t for t in texts if "extra ==" in t]
    return {asked.name: asked for asked in map(Requirement, [*(more if extras else []), *always])}


def untried() -> list[Untried]:
    """What is installed here and was never run: below the range that is asked for, or above the tested version."""
    newest, found = tested(), []
    for name, requirement in asked().items():
        try:
            version = Version(metadata.version(name))
        except (metadata.PackageNotFoundError, InvalidVersion):  # missing: whoever needs it says so
            continue
        above = name in newest and Version(version.public) > Version(newest[name])  # 2.13.0+cpu is a 2.13.0
        if above or not requirement.specifier.contains(version, prereleases=True):
            found.append(Untried(name, str(version), newest.get(name, ""), str(requirement.specifier)))
    return found


def warning() -> tuple[str, str] | None:
    """(what, fix) where this machine has versions that were never run here."""
    found = untried()
    if not found:
        return None
    return (
        "Not tested with "
        + ", ".join(map(str, found))
        + ". It may work; if something odd happens, suspect this first.",
        command(*(each.name for each in found)),
    )
