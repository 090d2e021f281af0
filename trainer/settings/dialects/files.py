"""Configuration files of other trainers, told apart by their content: kohya's TOML (`--config_file` and `--dataset_config`) and
the JSON of its graphical front end, OneTrainer's JSON, ai-toolkit's YAML.

`tree` reads a file and says whose it is; `flat` lists its keys. Nothing here judges a key: that is the dialects' matter.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.files import regular
from trainer.settings import overlay
from trainer.settings.config import Config, knobs
from trainer.settings.dialects import diffusers, kohya

OURS = "ours"
KOHYA, DATASET, ONETRAINER, AITOOLKIT = (
    "kohya's sd-scripts",
    "a data set of kohya's sd-scripts",
    "OneTrainer",
    "ai-toolkit",
)
NO_SIMPLETUNER = (
    "name what it trains with our own flags: --model, --instance_data_dir, --instance_prompt, --method lora, --rank, "
    "--learning_rate, --max_train_steps"
)


@dataclass(frozen=True)
class Row:
    """What became of one key. outcome: "value" (`text` says of what), "note" (why it means nothing here), or "refused"
    (`text` is the reason, `fix` what to do instead)."""

    key: str
    value: str
    outcome: str
    text: str
    fix: str = ""


def tree(path: Path, flag: str = "config") -> tuple[str, dict[str, Any]]:
    """(whose file it is, its tables). Raises ConfigError where it is none of the known kinds or cannot be read."""
    text = regular.text(path, f"name a TOML, JSON or YAML file after --{flag}")
    if text.lstrip().startswith("{"):
        return _json(path, text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _yaml(path, text)
    try:
        tables = overlay.tables(path, text)
    except ConfigError:
        if "\njob:" in f"\n{text}":
            return _yaml(path, text)
        raise
    return _toml(path, tables), tables


def _toml(path: Path, tables: dict[str, Any]) -> str:
    """Ours has our sections; a data set has [[datasets]]; anything else with a flag of theirs is a file of arguments."""
    if isinstance(tables.get("datasets"), list):
        return DATASET
    if tables.keys() <= Config.model_fields.keys():
        return OURS
    _mistyped(path, tables)
    known = kohya.SCRIPT_FLAGS | diffusers.SCRIPT_FLAGS
    return KOHYA if any(key in known for key, _ in flat(tables)) else OURS


def _mistyped(path: Path, tables: dict[str, Any]) -> None:
    """ConfigError for a section that was meant to be one of ours: read as theirs, it would set what it happens to name."""
    for section, table in tables.items():
        near = (
            difflib.get_close_matches(section.lower(), Config.model_fields, 1, 0.72) if isinstance(table, dict) else []
        )
        if near and section not in Config.model_fields and all(f"{near[0]}.{name}" in knobs() for name in table):
            raise ConfigError(f"{path} has a section [{section}], which does not exist", f"did you mean [{near[0]}]?")


def _json(path: Path, text: str) -> tuple[str, dict[str, Any]]:
    tables = regular.parsed(path, "JSON", "mend that line, or export the file again", lambda: json.loads(text))
    if isinstance(tables.get("datasets"), list):
        return DATASET, tables
    if _is_aitoolkit(tables):
        return AITOOLKIT, tables
    if {key.lstrip("-") for key in tables} & {"model_family", "data_backend_config"}:
        raise ConfigError(f"{path} is a file of SimpleTuner, which is not read", NO_SIMPLETUNER)
    if tables.keys() & {"training_method", "model_type", "base_model_name"}:
        return ONETRAINER, tables
    if tables.keys() & {"pretrained_model_name_or_path", "LoRA_type"}:
        return KOHYA, tables
    raise ConfigError(
        f"{path} is JSON of an unknown kind",
        "OneTrainer's and kohya's are read, and TOML with this trainer's sections (presets/)",
    )


def _yaml(path: Path, text: str) -> tuple[str, dict[str, Any]]:
    import yaml

    fix = "mend that line; indentation is by spaces"
    try:
        tables = regular.parsed(path, "YAML", fix, lambda: yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", fix) from error
    if not (isinstance(tables, dict) and _is_aitoolkit(tables)):
        raise ConfigError(
            f"{path} is YAML of an unknown kind",
            "ai-toolkit's is read, and TOML with this trainer's sections (see presets/)",
        )
    return AITOOLKIT, tables


def _is_aitoolkit(tables: dict[str, Any]) -> bool:
    return isinstance(tables.get("config"), dict) and "process" in tables["config"]


def flat(tables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of a file of arguments, whose sections are only for the reader's eye."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value)
        else:
            yield key, value


def shown(value: Any) -> str:
    """A value as the flag's text would be: true, words of a list joined."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, (list, tuple)):
        return " ".join(shown(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
