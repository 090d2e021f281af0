"""`--help`: one page, grouped as the settings are, with defaults and other spellings; it never needs torch."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import typing
from typing import Any

from trainer.cli.flags import flags
from trainer.cli.parse import COMMANDS, USES
from trainer.settings.config import Config, knobs

INDENT = 32  # columns of flags
EXAMPLES = (
    ("python -m trainer", "the built-in demo, no network needed"),
    ("python -m trainer --preset 12gb --instance_data_dir photos --class_name dog", "own photos, Stable Diffusion 1.5"),
    ("python -m trainer plan --preset 8gb --family sdxl", "what would fit, without training"),
    ("python -m trainer explain checkpointing", "everything about one setting"),
)  # fmt: skip

OUTPUT = (
    "Nobody has to read what a run prints. Where stdout is closed, or its reader leaves (| head, a tee that died, a full disk "
    "behind >), the run goes on to its end: RUN/log.jsonl has everything and says what became of the output, and the exit "
    "code is the run's: 0 done, 1 a fault of this program, 2 something you can mend, 130 interrupted and saved."
)


def page(command: str = "train") -> str:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    bold, dim, plain = _styles()
    words = ["[COMMAND]"] if command == "train" else [command, COMMANDS[command][0]]
    lines = [f"{bold}usage{plain}  python -m trainer {' '.join(filter(None, words))} [--flag value ...]"]
    if command == "train":
        lines += ["", "Fine-tune Stable Diffusion on photos of your subject, on the card you have.", ""]
        for example, meaning in EXAMPLES:
            lines += [f"  {example}", f"      {dim}{meaning}{plain}"]
        lines += ["", f"{bold}Commands{plain} {dim}(without one it trains; COMMAND --help says more){plain}"]
        lines += [line for name, (_, about) in COMMANDS.items() for line in _row(name, about, width)]
    else:
        lines += ["", COMMANDS[command][1]]
    if command in ("doctor", "explain", "watch", "report", "compare"):
        return "\n".join(lines) + "\n"
    layers = "defaults < preset < --config < flags; also as --section.name and with hyphens"
    lines += ["", f"{bold}Settings{plain} {dim}{layers}{plain}"]
    lines += _row("--version", "print the version", width) if command == "train" else []
    lines += _row("--config FILE", "a TOML file with any of the settings below, under their [section]", width)
    if command == "plan":
        lines += _row("--json", "print the plan for machines", width)
    for section, keys in _sections(command).items():
        if section:
            about = Config.model_fields[section].annotation.__doc__.strip().partition("\n")[0]
            lines += ["", f"{bold}{about}{plain} {dim}[{section}]{plain}"]
        for key in keys:
            lines += _knob(key, width, dim, plain)
    if command == "train":
        lines += ["", f"{bold}Output{plain}", *(f"  {line}" for line in textwrap.wrap(OUTPUT, width - 2))]
    return "\n".join(lines) + "\n"


def shape(info: Any) -> str:
    """What a setting takes, in a word: auto|off|blocks, NUMBER, TEXT ... Empty for a switch."""
    kinds = [kind for kind in (typing.get_args(info.annotation) or (info.annotation,)) if kind is not type(None)]
    if typing.get_origin(info.annotation) is typing.Literal:
        return "|".join(kinds)
    if typing.get_origin(info.annotation) is list or any(typing.get_origin(kind) is list for kind in kinds):
        inner = kinds[0] if typing.get_origin(info.annotation) is list else typing.get_args(kinds[0])[0]
        return ("|".join(typing.get_args(inner)) or "TEXT") + " ..."
    return {bool: "", int: "N", float: "X", str: "TEXT"}[kinds[0]]


def default(info: Any) -> str:
    """A default worth showing; an open one is explained by the help itself."""
    value = info.default
    if value is None or value == [] or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(value) if isinstance(value, list) else f"{value}"


def _sections(command: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for key in knobs():
        if key.startswith(USES.get(command, "")):
            sections.setdefault(key.rpartition(".")[0], []).append(key)
    return sections


def _knob(key: str, width: int, dim: str, plain: str) -> list[str]:
    info, name = knobs()[key], key.rpartition(".")[2]
    spelling = name if name in flags() else key
    about = info.description
    if default(info):
        about += f" [{default(info)}]"
    aliases = [alias for alias in info.json_schema_extra["aliases"] if alias != name]
    if info.default is True:
        spelling = f"[no-]{spelling}"
    lines = _row(f"--{spelling} {shape(info)}".rstrip(), about, width)
    if aliases:
        also = textwrap.wrap("also --" + ", --".join(aliases), width - INDENT)
        lines += [f"{' ' * INDENT}{dim}{line}{plain}" for line in also]
    return lines


def _row(left: str, right: str, width: int) -> list[str]:
    body = textwrap.wrap(right, width - INDENT, break_on_hyphens=False)
    if len(left) + 4 > INDENT:
        return [f"  {left}", *(" " * INDENT + line for line in body)]
    return [f"  {left:<{INDENT - 2}}{body[0]}", *(" " * INDENT + line for line in body[1:])]


def _styles() -> tuple[str, str, str]:
    terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return ("\x1b[1m", "\x1b[2m", "\x1b[0m") if terminal else ("", "", "")
