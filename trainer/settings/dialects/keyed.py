"""Files whose keys are a program's own words: a table of keys, and the reading of a file by it.

    Key(to)          the key sets values here: `to(value)` gives {dotted key: value}
    Note(why)        it means nothing here
    Stop(why, fix)   it would change what is learned and cannot be honoured; `fine`: values that ask for what happens anyway

A key that no table knows is refused, too: a file is never half understood without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError
from trainer.settings.dialects.files import Row, shown

Values = dict[str, Any]


@dataclass(frozen=True)
class Key:
    to: Callable[[Any], Values]


@dataclass(frozen=True)
class Note:
    why: str


@dataclass(frozen=True)
class Stop:
    why: str
    fix: str = "leave it out"
    fine: tuple[Any, ...] = ()


Table = Mapping[str, Key | Note | Stop]


def to(*keys: str) -> Key:
    """The value as it stands, under one knob (or several)."""
    return Key(lambda value: dict.fromkeys(keys, value))


def on(**values: Any) -> Key:
    """A switch: values where it is true, nothing where it is not."""
    settings = {key.replace("__", "."): value for key, value in values.items()}
    return Key(lambda value: settings if value is True else {})


def choice(**choices: Values) -> Key:
    """One word of several, in any case."""

    def read(value: Any) -> Values:
        word = str(value).upper()
        if word not in choices:
            raise ConfigError(f"{value} is not built in", f"choose one of: {', '.join(choices)}")
        return choices[word]

    return Key(read)


def leaves(tables: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in nested tables; lists are values."""
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def read(pairs: Iterator[tuple[str, Any]], table: Table, ignored: tuple[str, ...] = ()) -> tuple[list[Row], Values]:
    """Judge every pair by the table. `ignored`: beginnings of keys that are the program's own bookkeeping."""
    rows, values = [], {}
    for path, value in pairs:
        rule = table.get(path) or table.get(f"*.{path.rpartition('.')[2]}")
        text = shown(value) if not isinstance(value, Mapping) else "..."
        if rule is None and path.startswith(ignored):
            rule = Note("its own bookkeeping")
        if value is None or value in ("", [], {}):
            rows.append(Row(path, text, "note", "not set"))
        elif rule is None:
            rows.append(Row(path, text, "refused", "nothing here has this meaning", "take the key out of the file"))
        elif isinstance(rule, Note):
            rows.append(Row(path, text, "note", rule.why))
        elif isinstance(rule, Stop):
            harmless = value in rule.fine or str(value).upper() in rule.fine
            outcome = ("note", "it asks for what happens anyway", "") if harmless else ("refused", rule.why, rule.fix)
            rows.append(Row(path, text, *outcome))
        else:
            rows.append(_set(path, value, text, rule, values))
    return rows, values


def _set(path: str, value: Any, text: str, rule: Key, values: Values) -> Row:
    try:
        found = rule.to(value)
    except ConfigError as error:
        return Row(path, text, "refused", error.what, error.fix)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        return Row(
            path, text, "refused", f"{text!r} is not what stands there otherwise ({error})", "export the file again"
        )
    values |= found
    if not found:
        return Row(path, text, "note", "it asks for what happens anyway")
    return Row(path, text, "value", ", ".join(f"{key} = {shown(v)}" for key, v in found.items()))
