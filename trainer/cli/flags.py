"""One flag after the other, read into what it means: values of ours by dotted key, a note, or a refusal with its fix.

Every knob is a flag under its own name, its dotted name and its aliases; hyphens and underscores are the same. Flags of other
trainers come from `settings/dialects`; those whose meaning the rest of the line decides wait in `Given.later`.
"""

from __future__ import annotations

import typing
from typing import Any

from trainer.errors import ConfigError
from trainer.settings.config import knobs
from trainer.settings.dialects import kohya
from trainer.settings.dialects.given import Given
from trainer.settings.dialects.meanings import SWITCH, Meaning, Noted, Refused
from trainer.settings.dialects.programs import Program, foreign_names, meaning
from trainer.settings.overlay import nearest

TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def flags() -> dict[str, str]:
    """Every spelling without dashes -> dotted key. Names that two sections share are only known with their section."""
    spellings: dict[str, str] = {}
    shared: set[str] = set()
    for key, info in knobs().items():
        name = key.rpartition(".")[2]
        if name in spellings:
            shared.add(name)
        spellings |= dict.fromkeys((key, name, *info.json_schema_extra["aliases"]), key)
    return {spelling: key for spelling, key in spellings.items() if spelling not in shared}


def read(given: Given, name: str, attached: list[str], rest: list[str], program: Program | None) -> None:
    """Read flag `name` with the value `attached` to it (--flag=value), else with words taken from `rest`."""
    known = flags()
    foreign = meaning(name, program)
    if name in kohya.LATER:
        text = " ".join(attached or (_take(rest) if name in kohya.MANY else [_one(name, [], rest)]))
        if text.lower() not in ("none", "null", ""):
            given.later[name], given.spelled[f"later.{name}"] = text, name
    elif foreign is not None:
        _foreign(given, name, foreign, attached, rest)
    elif name in known or (name.startswith("no_") and name[3:] in known):
        _knob(given, known.get(name) or known[name[3:]], name, attached, rest)
    else:
        shared = [f"--{key}" for key in knobs() if key.endswith("." + name)]
        if shared:
            raise ConfigError(f"--{name} could mean two settings", f"say which: {' or '.join(shared)}")
        raise ConfigError(f"--{name} does not exist", near(name) or "see --help for all settings")


def near(name: str) -> str:
    """'did you mean --...?' for a mistyped flag, or nothing."""
    names = [spelling for spelling in (*flags(), *foreign_names()) if "." not in spelling]
    return nearest(name, names, "did you mean --{}?")


def _foreign(given: Given, name: str, foreign: Meaning, attached: list[str], rest: list[str]) -> None:
    if isinstance(foreign, Refused):
        if " ".join(attached or _take(rest)).lower() not in foreign.harmless:
            raise ConfigError(f"--{name}: {foreign.why}", foreign.fix)
    elif isinstance(foreign, Noted):
        attached or _take(rest)
        given.notices.append(f"--{name} has no effect: {foreign.why}")
    else:
        text = " ".join(attached or _take(rest)) if foreign.many else _optional(attached, rest)
        for key, value in foreign.to(text).items():
            _set(given, key, value, name)
        if foreign.note:
            given.notices.append(f"--{name}: {foreign.note}")


def _knob(given: Given, key: str, name: str, attached: list[str], rest: list[str]) -> None:
    negated = name not in flags()
    kind = knobs()[key].annotation
    if bool in (kind, *typing.get_args(kind)):
        text = "true" if negated and not attached else _optional(attached, rest)
        truth = TRUTH.get(text.lower(), text)
        if not isinstance(truth, bool) or (negated and attached):
            raise ConfigError(f"--{name} {text}: must be true or false", f"write --{name} or --no-{name}")
        _set(given, key, truth != negated, name)
    elif negated:
        raise ConfigError(
            f"--{name} does not exist: {key} is not a switch", f"give it a value: --{name[3:]} VALUE (see --help)"
        )
    elif list in (typing.get_origin(kind), *map(typing.get_origin, typing.get_args(kind))):
        texts = attached or _take(rest)
        if not texts:
            raise ConfigError(f"--{name} needs a value", f"write --{name} VALUE ...")
        # commas belong to prompts and names of folders, but separate the words of other lists
        prose = key in ("sample.validation_prompt", "data.subsets")
        _set(given, key, texts if prose else [part for text in texts for part in text.split(",") if part], name)
    else:
        text = _one(name, attached, rest)
        unset = text.lower() in ("none", "null") and type(None) in typing.get_args(kind)
        _set(given, key, None if unset else text, name)


def _set(given: Given, key: str, value: Any, name: str) -> None:
    before = given.spelled.get(key)
    if before not in (None, name) and str(given.values[key]) != str(value):
        raise ConfigError(f"--{before} and --{name} contradict each other: both set {key}", "leave one of them out")
    given.put(key, value, name)


def _take(rest: list[str]) -> list[str]:
    """All words up to the next flag."""
    taken = []
    while rest and (not rest[0].startswith("-") or number(rest[0])):
        taken.append(rest.pop(0))
    return taken


def _one(name: str, attached: list[str], rest: list[str]) -> str:
    if attached:
        return attached[0]
    if not rest or rest[0].startswith("--"):
        raise ConfigError(
            f"--{name} needs a value",
            f"write --{name} VALUE" + (f"; a value that begins with dashes is written --{name}=VALUE" if rest else ""),
        )
    return rest.pop(0)


def one(name: str, attached: list[str], rest: list[str]) -> str:
    """The one value that `name` needs."""
    return _one(name, attached, rest)


def _optional(attached: list[str], rest: list[str]) -> str:
    """The value of a flag that may stand alone: a switch is true."""
    if attached:
        return attached[0]
    return rest.pop(0) if rest and not rest[0].startswith("--") else SWITCH


def number(word: str) -> bool:
    return word.lstrip("-").replace(".", "").replace("e-", "").replace("e", "").isdigit()
