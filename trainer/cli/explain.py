"""`python -m trainer explain WORD`: everything about one setting, technique, preset or foreign flag; `explain --from FILE`: what
every key of another trainer's file becomes here.

Settings are explained from the schema, techniques by the card at the top of their file, which is
read as text (`ast`), so that no answer has to wait for torch.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.cli.flags import flags
from trainer.cli.help import default, shape
from trainer.errors import ConfigError
from trainer.settings.config import Config, knobs
from trainer.settings.dialects.meanings import SWITCH, Noted, Refused
from trainer.settings.dialects.programs import foreign_names, meaning
from trainer.settings.effect import idle
from trainer.settings.overlay import nearest, presets

WITH_CARDS = ("memory", "models", "prior")  # wings whose files may begin with a card


def main(words: list[str], files: list[Path]) -> int:
    from trainer.cli.foreign_files import table

    for path in files:
        print("\n".join(table(path)))
    for word in words:
        print(explain(word))
    return 0


def explain(word: str) -> str:
    """Everything that goes by this name, each part a paragraph: settings, else a value they take and a section."""
    name = word.lstrip("-").replace("-", "_")
    parts = [knob(key) for key in _keys(name) or _taking(name)]
    if name in Config.model_fields and name != "preset":
        parts.append(section(name))
    if name in cards():
        parts.append(cards()[name])
    if name in presets():
        parts.append(presets()[name].read_text(encoding="utf-8").rstrip())
    parts += _foreign(name) if not parts else []
    if not parts:
        known = [*knobs(), *flags(), *cards(), *presets(), *foreign_names()]
        techniques = f"techniques: {', '.join(cards())}; settings: see --help"
        raise ConfigError(f"nothing here is called {word!r}", nearest(name, known) or techniques)
    return "\n\n".join(parts)


def knob(key: str) -> str:
    """One setting: what it is, what it takes, its names, who sets it and when it counts."""
    info = knobs()[key]
    section, _, name = key.rpartition(".")
    shared = name not in flags()
    takes = {"": f"on or off (--{name}, --no-{name})", "N": "a whole number", "X": "a number", "TEXT": "text"}
    rows = [("takes", takes.get(shape(info), shape(info))), ("default", default(info) or "left open")]
    rows += [("range", bounds(info))] if bounds(info) else []
    rows.append(("flag", f"--{key}" if shared else f"--{name}"))
    rows.append(("file", f"[{section}] {name} = ..." if section else f"{name} = ..."))
    aliases = [alias for alias in info.json_schema_extra["aliases"] if alias != name]
    rows += [("also", ", ".join(f"--{alias}" for alias in aliases))] if aliases else []
    rows += [("set by", f"{preset}: {value}") for preset, value in set_by(key)]
    useless = idle(Config()).get(key)
    rows += [("idle", f"by default, because {useless.why} ({useless.fix.partition(',')[0]})")] if useless else []
    lines = [f"{key}: {info.description}", *(f"  {left:<8} {right}" for left, right in rows)]
    return "\n".join(lines)


def bounds(info: Any) -> str:
    """The range of a number in words: "at least 1 and at most 64"."""
    limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    rules = [(words, rule, limit) for limit in info.metadata for rule, words in limits.items() if hasattr(limit, rule)]
    return " and ".join(f"{words} {getattr(limit, rule):g}" for words, rule, limit in rules)


def section(name: str) -> str:
    """The settings under one heading, a line each."""
    rows = [(key, info.description) for key, info in knobs().items() if key.startswith(f"{name}.")]
    width = max(len(key) for key, _ in rows)
    title = f"[{name}] {Config.model_fields[name].annotation.__doc__}"
    return "\n".join([title, *(f"  {key:<{width}}  {about}" for key, about in rows)])


def cards() -> dict[str, str]:
    """The card of every technique by the name of its file: docstrings that say what it saves and costs."""
    found = {}
    root = Path(__file__).parent.parent
    for path in sorted(path for wing in WITH_CARDS for path in (root / wing).glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if "Saves:" in text and "Costs:" in text:
            found[path.stem] = text
    return found


def _keys(name: str) -> list[str]:
    """The settings a word may mean; a name that two sections share means both."""
    if name in flags():
        return [flags()[name]]
    return [key for key in knobs() if key.rpartition(".")[2] == name]


def _taking(value: str) -> list[str]:
    """The settings that take a word: "lora" is a value of train.method."""
    choices = {key: shape(info).removesuffix(" ...").split("|") for key, info in knobs().items()}
    return [key for key, words in choices.items() if value in words and len(words) > 1]


def set_by(key: str) -> Iterator[tuple[str, str]]:
    """The presets that set this setting, and to what."""
    section, _, name = key.rpartition(".")
    for preset, path in presets().items():
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if name in values.get(section, {}):
            yield f"preset {preset}", str(values[section][name])


def _foreign(name: str) -> list[str]:
    found = meaning(name)
    if isinstance(found, Noted):
        return [f"--{name} is accepted and has no effect: {found.why}"]
    if isinstance(found, Refused):
        return [f"--{name} is refused: {found.why}. {found.fix[0].upper()}{found.fix[1:]}."]
    if found is None:
        return [f"--{name} is understood together with the rest of its line"] if name in foreign_names() else []
    try:
        values = found.to(SWITCH)
    except ConfigError as error:
        return [f"--{name} is translated: {error.fix}"]
    said = ", ".join(f"{key} = {value}" for key, value in values.items())
    return [f"--{name} stands for {said or 'settings of this trainer'}" + (f" ({found.note})" if found.note else "")]
