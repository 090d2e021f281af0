"""Layers of settings: defaults < preset < --config file < flags, each value knowing which layer it came from.

A layer is a flat dictionary {"memory.weights": value}; `load` lays one over the other, lets the schema judge the result
and fills in what follows from other settings (the model, the prompts, whether there is a prior). `write` puts a resolved
configuration into a run folder in a form that `--config` takes back.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import trainer
from trainer.config import Config, ConfigError, knobs

DEMO = "demo"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def load(flags: Mapping[str, Any] | None = None, origins: Mapping[str, str] | None = None, file: Path | None = None) -> Config:
    """The configuration of a run: `flags` are {dotted key: value}, `origins` name the flag each came from."""
    flags, origins = dict(flags or {}), dict(origins or {})
    layers: list[tuple[dict[str, str], dict[str, Any]]] = []  # ({key: origin}, {key: value}), weakest first
    written = read(file) if file else {}
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
    config._provenance |= provenance
    _follow(config, file)
    return config


def validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """A Config holding `values`; everything the schema objects to is told at once, in the words of the person who set it."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", "check the path after --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "name a readable TOML file") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", "mend that line; strings need quotes, booleans are true or false") from error
    values: dict[str, Any] = {}
    for section, table in tables.items():
        values |= {f"{section}.{name}": value for name, value in table.items()} if isinstance(table, dict) else {section: table}
    known = knobs()
    for key in values:
        if key not in known:
            raise ConfigError(f"{path} sets {key!r}, which does not exist", nearest(key, known) or "see --help for all settings")
    return values


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
    raise ConfigError(f"there is no preset {name!r}", f"{nearest(name, shipped) or 'choose one of'} ({choices}, or a .toml file)")


def nearest(word: str, known: Iterable[str], say: str = "did you mean {}?") -> str:
    """'did you mean ...?' for a mistyped word; a name counts with and without its section. Empty when nothing is near."""
    known = list(known)
    by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
    word, last = word.lower().replace("-", "_"), word.lower().replace("-", "_").rpartition(".")[2]
    if last in by_name:
        return say.format(by_name[last])
    close = difflib.get_close_matches(word, known, 1, 0.72) or difflib.get_close_matches(last, by_name, 1, 0.72)
    return say.format(by_name.get(close[0], close[0])) if close else ""


def _complaint(detail: Mapping[str, Any]) -> tuple[str, str]:
    kind, limits = detail["type"], detail.get("ctx", {})
    words = {"greater_than": ("greater than", "gt"), "greater_than_equal": ("at least", "ge"), "less_than": ("less than", "lt"),
             "less_than_equal": ("at most", "le")}  # fmt: skip
    if kind in words:
        word, name = words[kind]
        return f"must be {word} {limits[name]:g}", f"choose a value {word} {limits[name]:g}"
    if kind == "literal_error":
        choices = limits["expected"].replace("'", "").replace(" or ", ", ")
        near = difflib.get_close_matches(str(detail["input"]), choices.split(", "), 1)
        return f"not one of {choices}", f"did you mean {near[0]}?" if near else f"choose one of {choices}"
    kinds = {"int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number",
             "float_type": "a number", "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text", "list_type": "a list"}  # fmt: skip
    expected = kinds.get(kind, "")
    return (f"must be {expected}", f"write {expected}") if expected else (detail["msg"], "see --help")


def _follow(config: Config, file: Path | None) -> None:
    """Settle what follows from other settings, so that everyone downstream reads plain values."""
    in_run = file is not None and (file.parent / "log.jsonl").is_file()
    if config.checkpoint.resume_from_checkpoint == "latest" and config.run.output_dir is None and in_run:
        config.settle("run.output_dir", str(file.parent), f"the run of {file}")
    data, prior = config.data, config.prior
    if config.model.name is None and config.model.family == "auto":
        mine = data.instance_data_dir is not None
        config.settle("model.name", SD15 if mine else DEMO, "default model" if mine else "no photos named: the demo")
    if data.instance_prompt is None and data.class_name:
        config.settle("data.instance_prompt", f"a photo of {data.identifier} {data.class_name}", "identifier and class_name")
    if prior.with_prior_preservation is None and not on_demo(config):
        named = bool(data.class_name or prior.class_prompt or prior.class_data_dir)
        on = config.train.method == "full" and named
        why = "full fine-tuning with a class named" if on else ("no class named" if not named else f"off for {config.train.method}")
        config.settle("prior.with_prior_preservation", on, why)
    if prior.with_prior_preservation and prior.class_prompt is None and data.class_name:
        config.settle("prior.class_prompt", f"a photo of a {data.class_name}", "class_name")


def on_demo(config: Config) -> bool:
    """True where the built-in photos are trained on; their own settings are then filled in by whoever loads them."""
    return config.data.instance_data_dir is None


# ---------------------------------------------------------------------------------------------- showing and writing


def effective(config: Config) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting that is not a plain default, for printing at the start of a run."""
    return [(key, _toml(config.value(key)), origin) for key, origin in sorted(config.provenance.items()) if origin != "default" and key in knobs()]


NOT_REPEATED = {  # settings of one run that its repetition must not inherit
    "run.output_dir": "a repeated run gets its own folder",
    "run.overwrite": "asked for this run only",
    "checkpoint.resume_from_checkpoint": "this run was resumed; a repeated one starts over",
}


def write(config: Config, provenance: Mapping[str, str], path: Path, idle: Mapping[str, str] | None = None) -> None:
    """Write the resolved settings with their origins as comments. Settings without effect (`idle`: key -> why), open
    ones and those of `NOT_REPEATED` stand as comments, so that `--config` takes the file back and means the same run."""
    idle = dict(idle or {})
    lines = [f"# Every setting of this run, and where it came from. Repeat it: python -m trainer --config {path}"]
    section = ""
    for key in knobs():
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            lines += ["", f"[{section}]"]
        value, origin = config.value(key), provenance.get(key, "default")
        if value is None:
            lines.append(f"# {name} is left open")
        elif key in idle or key in NOT_REPEATED:
            lines.append(f"# {name} = {_toml(value)}  # {origin}; {idle.get(key) or NOT_REPEATED[key]}")
        else:
            lines.append(f"{name} = {_toml(value)}  # {origin}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    """A value as TOML would spell it (and, for people, None as an unset word)."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return {None: "unset", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
