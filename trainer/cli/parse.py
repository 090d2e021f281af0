"""The command line, read off the schema: every knob is a flag under its own name, its dotted name and its aliases.

`parse` turns words into a `Command`: what to do, the settings given (by dotted key, with the spelling used), and the
notices that foreign flags call for. The grammar is small enough to hold in the head: `--flag value`, `--flag=value`,
`--flag` and `--no-flag` for booleans, several words for lists; hyphens and underscores are the same.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.settings import foreign
from trainer.settings.config import Config, knobs
from trainer.settings.overlay import load, nearest, read

COMMANDS = {
    "train": ("", "train; the same as no command"),
    "plan": ("", "show what fits where, and why, without training (--json for machines)"),
    "sample": ("RUN", "draw pictures from a run folder or a model"),
    "export": ("RUN", "write a run or a checkpoint as model files"),
    "doctor": ("", "check what is installed and what works on this machine"),
    "photos": ("[DIR]", "what of a folder would be trained on, with which words: in words and as a contact sheet"),
    "explain": ("WORD", "everything about one setting or memory technique"),
    "identifier": ("[WORD ...]", "judge words as names for a subject, or suggest some"),
    "watch": ("RUN", "look at a run that is training now"),
    "report": ("RUN", "write one self-contained HTML page about a run"),
    "compare": ("RUN RUN ...", "put runs side by side"),
}
DIFFUSERS_CLASS_IMAGES = 100  # the default of --num_class_images there
USES = {  # the settings a command reads; others would have no effect there
    "sample": ("model.", "sample.", "memory.", "run.", "train.seed", "train.mixed_precision", "preset"),
    "export": ("export.", "run.output_dir", "run.overwrite", "model.", "preset"),
    "photos": ("data.", "prior.", "model.", "train.method", "train.seed", "run.output_dir", "preset"),
    "doctor": ("run.device", "run.output_dir"),
}


@dataclass
class Command:
    name: str = "train"
    words: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # dotted key -> value as given
    spelled: dict[str, str] = field(default_factory=dict)  # dotted key -> flag it came from
    notices: list[str] = field(default_factory=list)
    file: Path | None = None
    help: bool = False
    version: bool = False
    json: bool = False
    foreign: bool = False  # a line made for diffusers' or kohya's scripts

    def config(self) -> Config:
        origins = {key: f"flag --{flag}" for key, flag in self.spelled.items()}
        return load(self.values, origins, self.file)


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


def parse(words: list[str]) -> Command:
    command = Command()
    words = list(words)
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            choices = f"photos go after --instance_data_dir; commands: {', '.join(COMMANDS)}"
            raise ConfigError(f"there is no command {words[0]!r}", nearest(words[0], COMMANDS) or choices)
        command.name = words.pop(0)
    known = flags()
    command.foreign = any(
        word.startswith(("--pretrained_model_name_or_path", "--pretrained-model-name-or-path")) for word in words
    )
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            command.help = True
        elif command.name == "explain":
            command.words.append(word)  # a flag is a word to explain
        elif word.startswith("--") and len(word) > 2:
            _flag(command, word, words, known)
        elif word.startswith("-") and not _number(word):
            raise ConfigError(
                f"{word!r} is not a flag",
                "flags begin with two dashes: " + (_near(word[1:], known) or "see --help"),
            )
        elif command.name in ("train", "plan", "doctor"):
            raise ConfigError(
                f"{word!r} stands alone",
                f"put the flag it belongs to before it: --{'prompt' if ' ' in word else 'instance_data_dir'} {word!r}",
            )
        else:
            command.words.append(word)
    _settle(command)
    return command


def _flag(command: Command, word: str, rest: list[str], known: dict[str, str]) -> None:
    spelling, equals, text = word[2:].partition("=")
    name = spelling.replace("-", "_")
    given = [text] if equals else []
    if name in ("version", "json"):
        setattr(command, name, True)
    elif name == "config":
        command.file = Path(_one(name, given, rest))
    elif name in foreign.REFUSED:
        why, fix = foreign.REFUSED[name]
        if " ".join(given or _take(rest)).lower() not in foreign.HARMLESS.get(name, ()):
            raise ConfigError(f"--{name}: {why}", fix)
    elif name in foreign.NOTED:
        given or _take(rest)
        command.notices.append(f"--{name} has no effect: {foreign.NOTED[name]}")
    elif name in foreign.SETS:
        sets = foreign.SETS[name]
        text = " ".join(given or _take(rest)) if sets.many else _optional(given, rest)
        for key, value in sets.to(text).items():
            _set(command, key, value, name)
        if sets.note:
            command.notices.append(f"--{name}: {sets.note}")
    elif name in known or (name.startswith("no_") and name[3:] in known):
        _knob(command, known.get(name) or known[name[3:]], name, given, rest, negated=name not in known)
    else:
        shared = [f"--{key}" for key in knobs() if key.endswith("." + name)]
        if shared:
            raise ConfigError(f"--{name} could mean two settings", f"say which: {' or '.join(shared)}")
        raise ConfigError(f"--{name} does not exist", _near(name, known) or "see --help for all settings")


def _near(name: str, known: dict[str, str]) -> str:
    names = [spelling for spelling in (*known, *foreign.SETS) if "." not in spelling]
    return nearest(name, names, "did you mean --{}?")


def _knob(command: Command, key: str, name: str, given: list[str], rest: list[str], negated: bool) -> None:
    kind = knobs()[key].annotation
    if bool in (kind, *typing.get_args(kind)):
        text = "true" if negated and not given else _optional(given, rest)
        truth = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }.get(text.lower(), text)
        if not isinstance(truth, bool) or (negated and given):
            raise ConfigError(f"--{name} {text}: must be true or false", f"write --{name} or --no-{name}")
        _set(command, key, truth != negated, name)
    elif negated:
        raise ConfigError(
            f"--{name} does not exist: {key} is not a switch", f"give it a value: --{name[3:]} VALUE (see --help)"
        )
    elif list in (typing.get_origin(kind), *map(typing.get_origin, typing.get_args(kind))):
        texts = given or _take(rest)
        if not texts:
            raise ConfigError(f"--{name} needs a value", f"write --{name} VALUE ...")
        prose = key == "sample.validation_prompt"  # commas belong to prompts, but separate the words of other lists
        values = texts if prose else [part for text in texts for part in text.split(",") if part]
        _set(command, key, values, name)
    else:
        text = _one(name, given, rest)
        unset = text.lower() in ("none", "null") and type(None) in typing.get_args(kind)
        _set(command, key, None if unset else text, name)


def _set(command: Command, key: str, value: Any, name: str) -> None:
    before = command.spelled.get(key)
    if before not in (None, name) and str(command.values[key]) != str(value):
        raise ConfigError(f"--{before} and --{name} contradict each other: both set {key}", "leave one of them out")
    command.values[key], command.spelled[key] = value, name


def _settle(command: Command) -> None:
    """What a whole line says beyond its words."""
    values = command.values
    adapter = next((key for key in ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets") if key in values), None)
    if (
        adapter
        and "train.method" not in values
        and command.name in ("train", "plan")
        and not (command.file and "train.method" in read(command.file))
    ):
        values["train.method"], command.spelled["train.method"] = "lora", command.spelled[adapter]
        command.notices.append(f"--{command.spelled[adapter]} asks for an adapter: training with --method lora")
    if command.spelled.get("train.method") == "network_module" and "train.train_text_encoder" not in values:
        values["train.train_text_encoder"], command.spelled["train.train_text_encoder"] = True, "network_module"
        command.notices.append(
            "--network_module trains the text encoder too, as kohya's script does; --network_train_unet_only leaves it out"
        )
    if command.spelled.get("train.method") == "network_module" and "lora.alpha" not in values:
        values["lora.alpha"], command.spelled["lora.alpha"] = 1, "network_module"
        command.notices.append("--network_module has alpha 1 where no --network_alpha is given, as in kohya's script")
    if command.foreign and "data.instance_prompt" in values and "data.captions" not in values:
        # diffusers' script reads no text files: one that another tool left behind must not change what its line means
        values["data.captions"], command.spelled["data.captions"] = False, command.spelled["data.instance_prompt"]
    if command.foreign and "train.num_train_epochs" in values:
        _epochs(command)
    for key in values:
        if not key.startswith(USES.get(command.name, "")):
            raise ConfigError(f"--{command.spelled[key]} has no effect on `{command.name}`", "leave it out")
    wanted = COMMANDS[command.name][0]
    if (
        wanted
        and not wanted.startswith("[")
        and len(command.words) < len(wanted.replace(" ...", "").split())
        and not command.help
    ):
        raise ConfigError(f"`{command.name}` needs {wanted}", f"write: python -m trainer {command.name} {wanted}")
    if wanted in ("RUN", "WORD") and len(command.words) > 1:
        raise ConfigError(
            f"`{command.name}` takes one {wanted}, not {len(command.words)}",
            f"leave out {' '.join(command.words[1:])!r}",
        )


def _epochs(command: Command) -> None:
    """diffusers' script ignores epochs where steps are given, and shows every class image once in an epoch."""
    values = command.values
    if "train.max_train_steps" in values:
        del values["train.num_train_epochs"]
        command.notices.append("--num_train_epochs has no effect: --max_train_steps decides, as in diffusers' script")
    elif command.spelled["train.num_train_epochs"] == "num_train_epochs" and values.get(
        "prior.with_prior_preservation"
    ):
        keys = ("prior.num_class_images", "train.train_batch_size", "train.gradient_accumulation_steps")
        given = [str(values.get(key, usual)) for key, usual in zip(keys, (DIFFUSERS_CLASS_IMAGES, 1, 1), strict=True)]
        epochs = str(values["train.num_train_epochs"])
        if not all(text.isdecimal() and int(text) for text in (*given, epochs)):
            return  # the schema says what is wrong
        pictures, batch, accumulation = map(int, given)
        steps = int(epochs) * math.ceil(math.ceil(pictures / batch) / accumulation)
        del values["train.num_train_epochs"]
        values["train.max_train_steps"], command.spelled["train.max_train_steps"] = steps, "num_train_epochs"
        command.notices.append(
            f"--num_train_epochs makes {steps} steps: an epoch of diffusers' script shows each of {pictures} class images"
        )


def _take(rest: list[str]) -> list[str]:
    """All words up to the next flag."""
    taken = []
    while rest and (not rest[0].startswith("-") or _number(rest[0])):
        taken.append(rest.pop(0))
    return taken


def _one(name: str, given: list[str], rest: list[str]) -> str:
    if given:
        return given[0]
    if not rest or rest[0].startswith("--"):
        raise ConfigError(
            f"--{name} needs a value",
            f"write --{name} VALUE" + (f"; a value that begins with dashes is written --{name}=VALUE" if rest else ""),
        )
    return rest.pop(0)


def _optional(given: list[str], rest: list[str]) -> str:
    """The value of a flag that may stand alone: a switch is true."""
    if given:
        return given[0]
    return rest.pop(0) if rest and not rest[0].startswith("--") else foreign.SWITCH


def _number(word: str) -> bool:
    return word.lstrip("-").replace(".", "").replace("e-", "").replace("e", "").isdigit()
