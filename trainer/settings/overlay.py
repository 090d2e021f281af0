"""Layers of settings: defaults < preset < --config file < flags, each value knowing which layer it came from.

A layer is a flat dictionary {"memory.weights": value}; `load` lays one over the other, lets the schema judge the result
and remembers who set what. `write` puts a resolved configuration into a run folder in a form that `--config` takes back.
"""

from __future__ import annotations

import difflib
import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import trainer
from trainer.errors import ConfigError
from trainer.files import regular
from trainer.files.shown import is_text
from trainer.files.whole import whole
from trainer.settings.config import Config, knobs
from trainer.settings.effect import idle
from trainer.settings.subsets import entry, subset

DEMO = "demo"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def load(
    flags: Mapping[str, Any] | None = None, origins: Mapping[str, str] | None = None, file: Path | None = None
) -> Config:
    """The configuration of a run: `flags` are {dotted key: value}, `origins` name the flag each came from."""
    flags, origins = dict(flags or {}), dict(origins or {})
    layers: list[tuple[dict[str, str], dict[str, Any]]] = []  # ({key: origin}, {key: value}), weakest first
    written = read(file) if file else {}
    validated(
        written, dict.fromkeys(written, f"file {file}")
    )  # also what a flag overrules: the next run has no such flag
    preset = flags.get("preset", written.get("preset"))
    if preset not in (None, "auto"):
        path = preset_file(str(preset))
        values = read(path)
        layers.append((dict.fromkeys(values, f"preset {path.stem}"), values))
    layers.append((dict.fromkeys(written, f"file {file}"), written))
    layers.append(({key: origins.get(key, f"flag --{key.rpartition('.')[2]}") for key in flags}, flags))

    merged: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    for origin, values in layers:
        merged |= values
        provenance |= origin
    config = validated(merged, provenance)
    config.provenance.update(provenance)
    _follow(config, file)
    return config


def validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """A Config holding `values`; everything the schema objects to is told at once, in the words of who set it."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        _require_text(key, value, origins)
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        complaints, fixes = [], []
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"][:2])
            complaint, fix = _complaint(detail)
            complaints.append(f"{key} = {_toml(detail['input'])} ({origins.get(key, 'default')}): {complaint}")
            fixes.append(fix)
        raise ConfigError("\n       ".join(complaints), "; ".join(dict.fromkeys(fixes))) from error


def read(path: Path) -> dict[str, Any]:
    """The settings of a TOML file by dotted key; unknown keys are refused with the nearest known one."""
    text = regular.text(path, "name a TOML file after --config or --preset")
    values: dict[str, Any] = {}
    for section, table in tables(path, text).items():
        values |= (
            {f"{section}.{name}": value for name, value in table.items()}
            if isinstance(table, dict)
            else {section: table}
        )
    known = knobs()
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{path} sets {key!r}, which does not exist", nearest(key, known) or "see --help for all settings"
            )
    if not values:
        raise ConfigError(f"{path} holds no settings", "name another file, or leave it out; see presets/ for examples")
    if text.startswith(BEGIN) and END not in text:
        raise ConfigError(
            f"{path} is cut short: its last line, {END!r}, is missing",
            "copy it again whole; if you shortened it yourself, remove its first line, too",
        )
    return values


def tables(path: Path, text: str) -> dict[str, Any]:
    """The tables of a TOML file that says `text`."""
    fix = "mend that line; strings need quotes, booleans are true or false"
    return regular.parsed(path, "TOML", fix, lambda: tomllib.loads(text))


def presets() -> dict[str, Path]:
    """The shipped presets by name, smallest card first."""
    files = {path.stem: path for root in trainer.__path__ for path in (Path(root) / "presets").glob("*.toml")}
    return dict(sorted(files.items(), key=lambda item: (len(item[0]), item[0])))


def preset_file(name: str) -> Path:
    shipped = presets()
    if name in shipped:
        return shipped[name]
    if name.endswith(".toml"):
        return Path(name)
    choices = ", ".join([*shipped, "auto"])
    raise ConfigError(
        f"there is no preset {name!r}", f"{nearest(name, shipped) or 'choose one of'} ({choices}, or a .toml file)"
    )


def nearest(word: str, known: Iterable[str], say: str = "did you mean {}?") -> str:
    """'did you mean ...?' for a mistyped word; a name counts with and without its section. Empty: nothing is near."""
    known = list(known)
    by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
    word, last = word.lower().replace("-", "_"), word.lower().replace("-", "_").rpartition(".")[2]
    if last in by_name:
        return say.format(by_name[last])
    close = difflib.get_close_matches(word, known, 1, 0.72) or difflib.get_close_matches(last, by_name, 1, 0.72)
    return say.format(by_name.get(close[0], close[0])) if close else ""


LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}


def _require_text(key: str, value: Any, origins: Mapping[str, str]) -> None:
    """No file can have a name with a zero in it, and no settings file can hold bytes that are no UTF-8."""
    texts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    if odd := [text for text in texts if not is_text(text)]:
        raise ConfigError(
            f"{key} ({origins.get(key, 'default')}) holds what is no text: {odd[0]}",
            "write it, and name files, in UTF-8",
        )


def _complaint(detail: Mapping[str, Any]) -> tuple[str, str]:
    """(what is wrong, what to do) for one finding of pydantic."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in LIMITS:
        words, name = LIMITS[kind]
        limit = str(context[name]) if isinstance(context[name], int) else f"{context[name]:g}"
        return f"must be {words} {limit}", f"choose a value {words} {limit}"
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        near = difflib.get_close_matches(str(detail["input"]), choices.split(", "), 1)
        return f"not one of {choices}", f"did you mean {near[0]}?" if near else f"choose one of {choices}"
    if kind == "finite_number":
        return "must be a finite number", "write a number"
    expected = KINDS.get(kind.partition("_")[0])
    return (f"must be {expected}", f"write {expected}") if expected else (detail["msg"], "see --help")


def _follow(config: Config, file: Path | None) -> None:
    """What follows from the layers alone: the model where none is named, and which run `latest` speaks of."""
    if config.data.subsets and config.data.instance_data_dir is None:
        config.settle("data.instance_data_dir", subset(config.data.subsets[0])[1], "the first of data.subsets")
    # as by --model "$MODEL" of a MODEL that is not set
    if config.model.name is not None and not config.model.name.strip():
        raise ConfigError("model.name is empty", "name a hub id, a diffusers folder or a .safetensors file")
    if config.model.name is None and config.model.family == "auto":
        mine = config.data.instance_data_dir is not None
        config.settle("model.name", SD15 if mine else DEMO, "default" if mine else "built-in demo")
    latest = config.checkpoint.resume_from_checkpoint == "latest" and config.run.output_dir is None
    if latest and file is not None and (file.parent / "log.jsonl").is_file():
        config.settle("run.output_dir", str(file.parent), f"the run of {file}")


# ---------------------------------------------------------------------------------------------- showing and writing


def effective(settings: Mapping[str, Any], provenance: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting that is not a plain default, in the order of the schema, for printing.

    settings: nested by section, as `Config.model_dump()` gives them and `RunStarted` carries them.
    """
    rows = []
    for key in (key for key in knobs() if key in provenance):
        section, _, name = key.rpartition(".")
        values = settings.get(section, {}) if section else settings
        if name in values:  # a log of an older version may lack a setting
            rows.append((key, _toml(values[name]), provenance[key]))
    return rows


BEGIN, END = (
    "# All settings of this run",
    "# end of the settings",
)  # a file that was cut in between trains something else
PLANNER, CHECKPOINT = "planner", "the checkpoint"  # who decided what a repetition decides again
FOLLOWING = {  # what follows from names and folders; read back, it would count as typed, and that counts before a folder's words
    "data.instance_prompt": "follows from the identifier, the class and the folders' names",
    "prior.class_prompt": "follows from the class, or from a folder's name",
    "prior.num_class_images": "where nobody keeps pictures of their own",
}
FOLDERS = (  # where a setting is one, relative to wherever the run was started
    "data.instance_data_dir",
    "prior.class_data_dir",
    "run.cache_dir",
    "run.logging_dir",
)
MODELS = ("model.name", "model.vae")  # folders, files, or names of the hub's or of ours
NOT_REPEATED = {  # settings of one run that its repetition must not inherit
    "run.output_dir": "a repeated run gets its own folder",
    "run.overwrite": "asked for this run only",
    "checkpoint.resume_from_checkpoint": "this run was resumed; a repeated one starts over",
}


def write(config: Config, provenance: Mapping[str, str], path: Path) -> None:
    """Write the resolved settings with their origins as comments. Settings without effect, open ones and those of
    `NOT_REPEATED` stand as comments, so that `--config` takes the file back and means the same run."""
    silent = {key: f"no effect: {found.why}" for key, found in idle(config).items()} | NOT_REPEATED
    if config.train.max_train_steps is not None:
        silent["train.num_train_epochs"] = "counted in max_train_steps"
    lines = [f"{BEGIN}, and where each came from. Repeat it: {_repeat(path)}"]
    section = ""
    for key in knobs():
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{section}]"]
        value, origin = whole_path(key, config.value(key)), provenance.get(key, "default")
        if value is None:
            lines.append(f"# {name} is left open")
        elif key in silent:
            lines.append(f"# {name} = {_toml(value)}  # {origin}; {silent[key]}")
        elif origin in (PLANNER, CHECKPOINT):  # read back, it would count as a wish that another card cannot grant
            lines.append(f"# {name} = {_toml(value)}  # {origin}; planned anew for the card at hand")
        elif key in FOLLOWING and not config.chosen(key):
            lines.append(f"# {name} = {_toml(value)}  # {origin}; {FOLLOWING[key]}")
        elif origin.startswith("preset "):  # read back beside another --preset, it would count before that
            lines.append(f"# {name} = {_toml(value)}  # {origin}; set by the preset that is named above")
        else:
            lines.append(f"{name} = {_toml(value)}  # {origin}")
    with whole(path) as part:
        part.write_text("\n".join([*lines, "", END]) + "\n", encoding="utf-8")


def _repeat(path: Path) -> str:
    return f"python -m trainer --config {shlex.quote(str(path.absolute()))}"


def whole_path(key: str, value: Any) -> Any:
    """The value of a setting, with the whole path where it is one: a run is gone back to from other folders, too. Links
    stay as they are: the hub's cache keeps a model's file under a name that says nothing of its kind."""
    model = key in MODELS and value is not None and value != DEMO and Path(value).exists()
    if value and (key in FOLDERS or model or (key == "preset" and value.endswith(".toml"))):
        return str(Path(value).absolute())
    if key == "data.subsets":
        return [entry(times, Path(folder).absolute(), words) for times, folder, words in map(subset, value or [])]
    return value


def _toml(value: Any) -> str:
    """A value as TOML would spell it (and, for people, None as an unset word)."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return (
        {None: "unset", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else repr(value)
    )
