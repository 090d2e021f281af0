"""The command line: words turned into a `Command`: what to do, the settings given (by dotted key, with the spelling used),
and the notices that foreign flags call for.

The grammar is small enough to hold in the head: `--flag value`, `--flag=value`, `--flag` and `--no-flag` for booleans,
several words for lists. A whole line of another trainer may be pasted, launcher and script included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from trainer.cli import flags as one
from trainer.errors import ConfigError
from trainer.settings.config import Config
from trainer.settings.dialects import lines
from trainer.settings.dialects.files import DATASET
from trainer.settings.dialects.given import Given
from trainer.settings.dialects.programs import PROGRAMS, Program
from trainer.settings.overlay import load, nearest, read

if TYPE_CHECKING:
    from trainer.cli.foreign_files import FileLine

COMMANDS = {
    "train": ("", "train; the same as no command"),
    "plan": ("", "show what fits where, and why, without training (--json for machines)"),
    "sample": ("RUN", "draw pictures from a run folder or a model"),
    "export": ("RUN", "write a run or a checkpoint as model files"),
    "doctor": ("", "check what is installed and what works on this machine"),
    "photos": ("[DIR]", "what of a folder would be trained on, with which words: in words and as a contact sheet"),
    "explain": (
        "WORD",
        "everything about one setting or memory technique; --from FILE: what another trainer's file means here",
    ),
    "identifier": ("[WORD ...]", "judge words as names for a subject, or suggest some"),
    "watch": ("RUN", "look at a run that is training now"),
    "report": ("RUN", "write one self-contained HTML page about a run"),
    "compare": ("RUN RUN ...", "put runs side by side"),
}
USES = {  # the settings a command reads; others would have no effect there
    "sample": (
        "model.",
        "sample.",
        "memory.",
        "run.",
        "train.seed",
        "train.mixed_precision",
        "export.strength",
        "preset",
    ),
    "export": ("export.", "run.output_dir", "run.overwrite", "model.", "preset"),
    "photos": ("data.", "prior.", "model.", "train.method", "train.seed", "guard.watch", "run.output_dir", "preset"),
    "doctor": ("run.device", "run.output_dir"),
}


@dataclass
class Command:
    name: str = "train"
    words: list[str] = field(default_factory=list)
    given: Given = field(default_factory=Given)
    file: Path | None = None  # a file of ours
    foreign_files: list[FileLine] = field(default_factory=list)
    explained: list[Path] = field(default_factory=list)  # files that `explain --from` is about
    program: Program | None = None  # the program of another trainer that the line was made for
    foreign: bool = False  # what that program ignores is a notice here
    help: bool = False
    version: bool = False
    json: bool = False
    typed: list[str] = field(default_factory=list)  # all words, as they came

    @property
    def values(self) -> dict[str, Any]:
        """Dotted key -> value as given."""
        return self.given.values

    @property
    def spelled(self) -> dict[str, str]:
        """Dotted key -> the flag it came from."""
        return self.given.spelled

    @property
    def notices(self) -> list[str]:
        return self.given.notices

    def config(self) -> Config:
        origins = {key: self.given.origins.get(key) or _origin(flag) for key, flag in self.spelled.items()}
        return load(self.values, origins, self.file)


def _origin(flag: str) -> str:
    return f"line of {flag}" if flag in PROGRAMS else f"flag --{flag}"


def parse(words: list[str]) -> Command:
    command = Command(typed=list(words))
    words = list(words)
    if words and words[0] in COMMANDS:
        command.name = words.pop(0)
    words, command.program, launcher = lines.open(words)
    if words and not words[0].startswith("-") and command.name == "train" and command.program is None:
        choices = f"photos go after --instance_data_dir; commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"there is no command {words[0]!r}", nearest(words[0], COMMANDS) or choices)
    command.foreign = command.program is not None
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            command.help = True
        elif command.name == "explain" and not word.startswith("--from"):
            command.words.append(word)  # a flag is a word to explain
        elif word.startswith("--") and len(word) > 2:
            _flag(command, word, words)
        elif word.startswith("-") and not one.number(word):
            fix = "flags begin with two dashes: " + (one.near(word[1:]) or "see --help")
            raise ConfigError(f"{word!r} is not a flag", fix)
        elif command.name in ("train", "plan", "doctor"):
            flag = "prompt" if " " in word else "instance_data_dir"
            raise ConfigError(f"{word!r} stands alone", f"put the flag it belongs to before it: --{flag} {word!r}")
        else:
            command.words.append(word)
    _settle(command, launcher)
    return command


def _flag(command: Command, word: str, rest: list[str]) -> None:
    spelling, equals, text = word[2:].partition("=")
    name = spelling.replace("-", "_")
    attached = [text] if equals else []
    if name in ("version", "json"):
        setattr(command, name, True)
    elif name == "from" and command.name == "explain":
        command.explained.append(Path(one.one(name, attached, rest)))
    elif name in ("config", "config_file", "dataset_config"):
        from trainer.cli.foreign_files import open_file  # --help does not wait for it

        path = Path(one.one(name, attached, rest))
        told = open_file(path, name)
        if told is None:
            command.file = path
        else:
            command.foreign_files.append(told)
    else:
        one.read(command.given, name, attached, rest, command.program)


def _program(command: Command) -> Program | None:
    """The program that the whole line was made for: the script it names, else what its file was made for. The line's own
    flags tell it only where there is no such file: a model named beside kohya's file does not make it diffusers'."""
    named = command.program is not None and any(word.endswith(command.program.script) for word in command.typed)
    if named or not command.foreign_files:
        return command.program
    told = next((told.program for told in command.foreign_files if told.program is not None), None)
    whole = any(told.whose != DATASET for told in command.foreign_files)
    return told if told is not None or whole else command.program


def _settle(command: Command, launcher: dict[str, str]) -> None:
    """What a whole line says beyond its words."""
    if command.help:
        return
    if command.file is not None and command.program is not None:
        command.given.elsewhere = frozenset(read(command.file))
    command.program = _program(command)
    for told in command.foreign_files:
        told.under(command.given)
        command.foreign = True
    if command.name in ("train", "plan"):
        lines.settle(command.given, command.program, launcher)
        _adapter(command)
    values = command.values
    for key in values:
        if not key.startswith(USES.get(command.name, "")):
            folder = values[key] if command.name == "doctor" and key == "data.instance_data_dir" else None
            instead = f"a folder of photos is looked at by: python -m trainer photos {quote(str(folder))}"
            raise ConfigError(
                f"--{command.spelled[key]} has no effect on `{command.name}`", instead if folder else "leave it out"
            )
    wanted = COMMANDS[command.name][0]
    if (
        wanted
        and not wanted.startswith("[")
        and len(command.words) < len(wanted.replace(" ...", "").split())
        and not command.explained
    ):
        raise ConfigError(f"`{command.name}` needs {wanted}", f"write: python -m trainer {command.name} {wanted}")
    if wanted in ("RUN", "WORD") and len(command.words) > 1:
        raise ConfigError(
            f"`{command.name}` takes one {wanted}, not {len(command.words)}",
            f"leave out {' '.join(command.words[1:])!r}",
        )


def _adapter(command: Command) -> None:
    """A rank or the like asks for an adapter where no method is named."""
    asked = next(
        (key for key in ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets") if key in command.values), None
    )
    if asked is None or (command.file and "train.method" in read(command.file)):
        return
    flag = command.spelled[asked]
    if command.given.default("train.method", "lora", flag):
        command.notices.append(f"--{flag} asks for an adapter: training with --method lora")
