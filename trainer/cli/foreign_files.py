"""A configuration file of another trainer, key by key: what each sets here, what means nothing here and why, what is refused.

kohya's keys are its flags, so they go through the same reading as a command line; OneTrainer's and ai-toolkit's have tables
of their own. Whatever is refused is told at once, with every fix, before anything runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cli import flags
from trainer.errors import ConfigError
from trainer.settings.dialects import files, lines
from trainer.settings.dialects.files import Row
from trainer.settings.dialects.given import Given
from trainer.settings.dialects.programs import Program, guess

FRONT_END = "the graphical front end's own"  # keys of its JSON that no script has


@dataclass
class FileLine:
    """One file: whose it is, what became of every key, and the settings that come of it."""

    path: Path
    whose: str
    program: Program | None = None
    rows: list[Row] = field(default_factory=list)
    given: Given = field(default_factory=Given)

    def under(self, given: Given) -> None:
        """Lay the file's settings under those of the line. Raises ConfigError with everything that is refused."""
        refused = [row for row in self.rows if row.outcome == "refused"]
        if refused:
            raise ConfigError(
                f"{self.path} ({self.whose}):\n       " + "\n       ".join(f"{row.key}: {row.text}" for row in refused),
                "; ".join(dict.fromkeys(f"{row.key}: {row.fix}" for row in refused))
                + f"; see it all: python -m trainer explain --from {shlex.quote(str(self.path))}",
            )
        for key, value in self.given.values.items():
            if given.default(key, value, self.given.spelled[key]):
                given.origins[key] = f"file {self.path}"
        given.later = self.given.later | given.later
        counts = {kind: sum(row.outcome == kind for row in self.rows) for kind in ("value", "note")}
        given.notices.append(
            f"{self.path} is a file of {self.whose}: {counts['value']} keys set something here, {counts['note']} mean nothing "
            f"here (why: python -m trainer explain --from {shlex.quote(str(self.path))})"
        )


def open_file(path: Path, flag: str) -> FileLine | None:
    """The file read by its content; None for one with this trainer's own sections."""
    if flag == "config" and not path.exists():
        return None  # whoever reads it says so
    whose, tables = files.tree(path, flag)
    if whose == files.OURS:
        if flag in ("config", "from"):
            return None
        raise ConfigError(
            f"--{flag} {path} holds none of kohya's keys", "name it with --config if it has this trainer's sections"
        )
    from trainer.settings.dialects import aitoolkit, kohya_toml, onetrainer  # --help does not wait for tables

    found = FileLine(path, whose)
    if whose == files.ONETRAINER:
        _translated(found, onetrainer.load(tables, path))
    elif whose == files.AITOOLKIT:
        _translated(found, aitoolkit.load(tables))
    elif whose == files.DATASET:
        for full, value, name, text in kohya_toml.words(tables):
            _key(found, full, value, name, text, None)
    else:
        _arguments(found, tables)
    return found


def _translated(found: FileLine, told: tuple[list[Row], dict[str, Any]]) -> None:
    found.rows, values = told
    for key, value in values.items():
        found.given.put(key, value, found.whose)


def _arguments(found: FileLine, tables: dict[str, Any]) -> None:
    """kohya's --config_file, or the front end's JSON: every key is a flag."""
    pairs = dict(files.flat(tables))
    front_end = found.path.suffix.lower() == ".json"
    found.program = guess({key for key, value in pairs.items() if value not in (False, None, "")})
    for key, value in pairs.items():
        if value in (False, None, "", []) or (
            front_end and str(value) == "0" and key not in ("seed", "lr_warmup_steps")
        ):
            found.rows.append(Row(key, files.shown(value), "note", "not set"))
        elif key in ("dataset_config", "config_file"):
            _nested(found, key, found.path.parent / str(value))
        else:
            _key(found, key, value, key, files.shown(value), found.program, front_end)


def _nested(found: FileLine, key: str, path: Path) -> None:
    """A file that the file names, which lies beside it or where it is run."""
    inner = open_file(path if path.exists() else Path(path.name), key)
    assert inner is not None
    found.rows += [Row(f"{key}: {row.key}", row.value, row.outcome, row.text, row.fix) for row in inner.rows]
    for name, value in inner.given.values.items():
        found.given.put(name, value, inner.given.spelled[name])
    found.given.notices += inner.given.notices


def _key(
    found: FileLine,
    full: str,
    value: Any,
    name: str,
    text: str | list[str],
    program: Program | None,
    front_end: bool = False,
) -> None:
    """One key that is a flag of kohya's: read it as the line would, and write down what came of it."""
    shown = files.shown(value)
    if not name or value in (False, None, ""):
        found.rows.append(Row(full, shown, "note", str(text) if not name and text != shown else "not set"))
        return
    before, later, notes = dict(found.given.values), dict(found.given.later), len(found.given.notices)
    try:
        flags.read(found.given, name, text if isinstance(text, list) else [text], [], program)
    except ConfigError as error:
        if front_end and "does not exist" in error.what:
            found.rows.append(Row(full, shown, "note", FRONT_END))
        else:
            found.rows.append(Row(full, shown, "refused", error.what.removeprefix(f"--{name}: "), error.fix))
        return
    after = found.given.values.items()
    changed = [f"{key} = {files.shown(v)}" for key, v in after if key not in before or before[key] != v]
    said = found.given.notices[notes:]
    if changed or found.given.later != later:
        found.rows.append(Row(full, shown, "value", ", ".join(changed) or "see below"))
    else:
        why = said[0].partition("has no effect: ")[2] if said else "it asks for what happens anyway"
        found.rows.append(Row(full, shown, "note", why or said[0]))
    del found.given.notices[notes:]


def table(path: Path) -> Iterator[str]:
    """What every key of the file becomes, for `explain --from`, without training."""
    found = open_file(path, "from")
    if found is None:
        yield f"{path} is a file of this trainer's own: every key is a setting (see `explain SETTING`)"
        return
    yield f"{path}: a file of {found.whose}" + (f", for {found.program.script}" if found.program else "")
    width = min(max((len(row.key) for row in found.rows), default=0), 44)
    for outcome, title in (("value", "sets"), ("note", "means nothing here"), ("refused", "refused")):
        rows = [row for row in found.rows if row.outcome == outcome]
        yield from ["", f"{title} ({len(rows)})"] if rows else []
        for row in rows:
            yield f"  {row.key:<{width}}  {row.value[:40]}" + (f"  ->  {row.text}" if row.text else "")
            if row.fix:
                yield f"  {'':<{width}}  fix: {row.fix}"
    whole = Given(dict(found.given.values), dict(found.given.spelled), dict(found.given.later))
    lines.settle(whole, found.program, {})
    added = [f"  {key} = {files.shown(v)}" for key, v in whole.values.items() if found.given.values.get(key) != v]
    yield from ["", "together", *added, *(f"  {notice}" for notice in whole.notices)] if added or whole.notices else []
