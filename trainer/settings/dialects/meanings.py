"""What a foreign flag or key can be: `Sets` values of ours, `Noted` (accepted, has no effect here, and why), or `Refused`
(it would change what is learned and cannot be honoured, and what to do instead), so that nobody believes it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.files import regular

SWITCH = "true"  # what a flag without a value carries
OFF = ("false", "0", "no", "off", "none", "")


@dataclass(frozen=True)
class Sets:
    """The values a flag stands for, and what to say about it. `to` maps the flag's text to {dotted key: value}."""

    to: Callable[[str], dict[str, Any]]
    note: str = ""
    many: bool = False  # takes several words, handed over joined by a space


@dataclass(frozen=True)
class Noted:
    """Accepted and without effect. `many`: takes several words."""

    why: str
    many: bool = True


@dataclass(frozen=True)
class Refused:
    """Refused, unless its value asks for what happens anyway (`harmless`)."""

    why: str
    fix: str = "leave it out"
    harmless: tuple[str, ...] = ()


Meaning = Sets | Noted | Refused
Flags = Mapping[str, Meaning]


def switch(note: str = "", **values: Any) -> Sets:
    """A switch: given (or given as true) it sets the values, `--flag false` sets nothing."""
    settings = {key.replace("__", "."): value for key, value in values.items()}
    return Sets(lambda text: settings if text.lower() not in OFF else {}, note)


def value(key: str, note: str = "") -> Sets:
    """A flag that is another name for a knob, in one program alone."""
    return Sets(lambda text: {key: text}, note)


def words(flag: str, choices: Mapping[str, dict[str, Any]], fix: str = "") -> Sets:
    """A flag that takes one of several words, in any case."""

    def to(text: str) -> dict[str, Any]:
        if text.lower() not in choices:
            raise ConfigError(f"--{flag} {text} is not known here", fix or f"choose one of: {', '.join(choices)}")
        return choices[text.lower()]

    return Sets(to)


def xformers() -> Sets:
    """Their lines carry this flag for memory's sake alone, so they run where xformers is missing; `--attention xformers` insists."""
    if find_spec("xformers"):
        return switch(memory__attention="xformers")
    return switch("xformers is not installed, so torch's own attention runs, which saves the same memory")


def resolution(text: str) -> dict[str, Any]:
    sides = re.split(r"(?<=\d)\s*[x,]\s*(?=\d)", text.strip("()[] "))
    if len(set(sides)) != 1:
        raise ConfigError(f"--resolution {text} is not a square", f"use --resolution {sides[0]} --buckets")
    return {"data.resolution": sides[0]}


def trackers(text: str) -> list[str]:
    found = text.replace(",", " ").lower().split()
    return ["tensorboard", "wandb"] if found == ["all"] else [word for word in found if word not in ("none", "null")]


def prompts(text: str) -> dict[str, Any]:
    """kohya's prompt file: a prompt a line, and what follows its first --n, --w, ... is one picture's settings; or a TOML or
    JSON file with a list of them."""
    path = Path(text)
    if path.suffix.lower() not in (".txt", ".toml", ".json") or not path.is_file():
        raise ConfigError(
            f"--sample_prompts {text}: there is no such .txt, .toml or .json file",
            "check the path, or write --prompt 'a photo of ...'",
        )
    found = [re.split(r"\s--\w\b", line)[0].strip() for line in _prompt_lines(path)]
    return {"sample.validation_prompt": found} if found else {}


def _prompt_lines(path: Path) -> list[str]:
    fix = "mend the file, or write --prompt"
    text = regular.text(path, fix)
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    import json
    import tomllib

    kind = path.suffix[1:].upper()
    told = regular.parsed(path, kind, fix, lambda: (json if kind == "JSON" else tomllib).loads(text))
    told = told.get("prompt", {}) if kind == "TOML" else told
    rows = told.get("subset", []) if isinstance(told, dict) else told
    if not isinstance(rows, list):
        raise ConfigError(f"{path} holds no list of prompts", fix)
    return [
        str(row["prompt"] if isinstance(row, dict) else row)
        for row in rows
        if not isinstance(row, dict) or "prompt" in row
    ]
