"""A whole command line of another program: which program, and what it says beyond its words.

`open` takes the launcher off (`accelerate launch --mixed_precision fp16 train_network.py ...`, pasted as it stands) and names
the program; `settle` fills in what the program's defaults and the flags together mean, once all words are read. Values
are kept as text by dotted key, as everywhere before the schema judges them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.settings.dialects import kohya_line
from trainer.settings.dialects.files import NO_SIMPLETUNER
from trainer.settings.dialects.given import Given
from trainer.settings.dialects.programs import PROGRAMS, Program, guess

LAUNCHERS = ("accelerate", "python", "python3", "torchrun", "uv", "snugbooth")
FILES = {  # scripts whose lines only name a file: whose they are, and the flag before the file
    "train.py": ("OneTrainer", "config-path"),
    "train_remote.py": ("OneTrainer", "config-path"),
    "run.py": ("ai-toolkit", ""),
}
WINDOWS = {  # programs with a window and no line: whose they are
    **dict.fromkeys(("train_ui.py", "train_ui_ctk.py", "train_ui_qt.py"), "OneTrainer"),
    "kohya_gui.py": "kohya_ss",
}
SHELL = (".sh", ".bat", ".cmd", ".ps1")
SIMPLETUNER = frozenset({"model_family", "data_backend_config", "model_flavour"})  # flags that no other program has
WARM = ("constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
DIFFUSERS_CLASS_IMAGES = 100  # the default of --num_class_images there


def open(words: Sequence[str]) -> tuple[list[str], Program | None, dict[str, str]]:
    """(the words of the line itself, the program it was made for, what its launcher settles by dotted key)."""
    words = _unwrapped(words)
    script = next((i for i, word in enumerate(words) if _is_script(words, i)), None)
    names = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    _require_readable(words, names)
    if script is not None:
        name = re.split(r"[/\\]", words[script])[-1]
        rest = list(words[script + 1 :])
        if name in FILES:
            return _file_line(words[script], *FILES[name], rest), None, {}
        if name in WINDOWS:
            raise ConfigError(
                f"{name} opens a window of {WINDOWS[name]}'s, and its settings are not in this line",
                "save or export them there, and name that file: --config FILE.json",
            )
        if name not in PROGRAMS:
            raise ConfigError(
                f"{name} trains something else than DreamBooth does here",
                f"lines of these are understood: {', '.join(PROGRAMS)}",
            )
        return rest, PROGRAMS[name], _launcher(words[:script])
    return list(words), guess(names), {}


def _unwrapped(words: Sequence[str]) -> list[str]:
    """OneTrainer's `run-cmd.sh NAME ...` runs `scripts/NAME.py ...` in its environment; what stands before it is a shell's."""
    at = next((i for i, word in enumerate(words) if re.split(r"[/\\]", word)[-1] == "run-cmd.sh"), None)
    if at is None or len(words) < at + 2 or any(word.startswith("-") for word in words[: at + 2]):
        return list(words)
    return ["python", f"scripts/{words[at + 1]}.py", *words[at + 2 :]]


def _require_readable(words: Sequence[str], names: set[str]) -> None:
    """ConfigError for lines that cannot be meant here: of SimpleTuner, and of scripts that hold the real line."""
    first = re.split(r"[/\\]", words[0])[-1] if words else ""
    if first == "simpletuner" or SIMPLETUNER & names:
        raise ConfigError("this line is SimpleTuner's, whose files are not read", NO_SIMPLETUNER)
    called = re.split(r"[/\\]", words[1])[-1] if first in ("bash", "sh") and len(words) > 1 else first
    if called.endswith(SHELL):
        raise ConfigError(
            f"{called} starts another program, and what it does is written inside it",
            "open it, and paste the line with the .py script that it starts",
        )


def _is_script(words: Sequence[str], index: int) -> bool:
    """A .py file that is launched: nothing of ours stands before it but a launcher, its flags, and variables."""
    if not words[index].endswith(".py") or words[index].startswith("--"):
        return False
    before = [word for word in words[:index] if "=" not in word or word.startswith("-")]
    return index == 0 or not before or re.split(r"[/\\]", before[0])[-1].removesuffix(".exe") in LAUNCHERS


def _launcher(words: Sequence[str]) -> dict[str, str]:
    """accelerate's own --mixed_precision is what a script uses that is given none."""
    line = " ".join(words)
    found = re.search(r"mixed[_-]precision[ =](no|fp16|bf16)\b", line)
    return {"train.mixed_precision": found[1]} if found else {}


def _file_line(script: str, whose: str, flag: str, rest: list[str]) -> list[str]:
    """OneTrainer's and ai-toolkit's command lines only name a file."""
    named = f"--{flag}"
    given = [word for word in rest if (word.partition("=")[0] == named if flag else not word.startswith("-"))]
    if not given:
        raise ConfigError(
            f"{script} is {whose}'s, and this line names no file of it",
            f"add {named} FILE.json" if flag else f"write: {script} FILE.yaml",
        )
    if not flag:
        return ["--config", *rest]
    return ["--config" + word[len(named) :] if word in given else word for word in rest]


def settle(given: Given, program: Program | None, launcher: dict[str, str]) -> None:
    """Complete `given` by what the whole line means."""
    for key, value in launcher.items():
        given.default(key, value, "mixed_precision")
    kohya_line.alpha(given)
    kohya_line.skip(given, program)
    kohya_line.rates(given)
    kohya_line.optimizer_args(given)
    kohya_line.network_args(given)
    if program is None:
        kohya_line.spelled_epochs(given)
        return
    if program.owner == "kohya":
        kohya_line.settle(given, program)
    else:
        _diffusers(given, program)
    _taken(given, program)
    kohya_line.warm_up(given)
    _told(given, program)


def _taken(given: Given, program: Program) -> None:
    """The program's defaults that decide which weights learn, for what the line leaves out; said in one line."""
    said = []
    together = {key: value for key, (value, _) in program.taken.items()} | given.values
    for key, (value, words) in program.taken.items():
        fits = _has_a_place(together, key)
        if fits and given.default(key, value, program.script) and _worth_saying(given.values, key):
            said.append(words)
    if said:
        given.notices.append(f"as in {program.script}: {'; '.join(said)}")


def _has_a_place(values: dict[str, Any], key: str) -> bool:
    """Whether a setting can have an effect in a line with `values`."""
    if key.startswith("lora.") and values.get("train.method") == "full":
        return False
    return _on(values.get("train.train_text_encoder")) or not key.startswith(("lora.text", "train.text"))


def _worth_saying(values: dict[str, Any], key: str) -> bool:
    """Whether a person would have expected something else here."""
    if key == "prior.with_prior_preservation":
        return bool({"prior.class_prompt", "data.class_name", "prior.class_data_dir"} & values.keys())
    if key == "data.captions":
        folder = Path(str(values.get("data.instance_data_dir") or ""))
        return folder.is_dir() and any(path.suffix.lower() in (".txt", ".caption") for path in folder.iterdir())
    return True


def _told(given: Given, program: Program) -> None:
    """The program's other defaults that differ from ours, for what the line leaves out; said in one line."""
    values, said = given.values, []
    for told in program.told:
        if told.key not in values and all(_holds(values, key, wanted) for key, wanted in told.only.items()):
            said.append(f"{told.what} ({told.flag})")
    if said:
        given.notices.append(f"left out of this line, and other defaults in {program.script}: {', '.join(said)}")


def _holds(values: dict[str, Any], key: str, wanted: Any) -> bool:
    if wanted is None:
        return key not in values
    if wanted == "warms":
        return values.get(key) in WARM
    return _on(values.get(key))


def _on(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes", "on")


# ---- diffusers


def _diffusers(given: Given, program: Program) -> None:
    """Its epochs count class images, and are ignored where steps are given; its output folder is laid out in its way."""
    values = given.values
    given.default("run.layout", "diffusers", program.script)
    if "train.num_train_epochs" not in values:
        return
    if "train.max_train_steps" in values:
        del values["train.num_train_epochs"]
        given.notices.append("--num_train_epochs has no effect: --max_train_steps decides, as in diffusers' script")
        return
    if not _on(values.get("prior.with_prior_preservation")):
        return
    given.default("prior.num_class_images", DIFFUSERS_CLASS_IMAGES, "num_train_epochs")
    keys = ("prior.num_class_images", "train.train_batch_size", "train.gradient_accumulation_steps")
    numbers = [str(values.get(key, 1)) for key in keys]
    epochs = str(values["train.num_train_epochs"])
    if not all(text.isdecimal() and int(text) for text in (*numbers, epochs)):
        return  # the schema says what is wrong
    pictures, batch, accumulation = map(int, numbers)
    steps = int(epochs) * math.ceil(math.ceil(pictures / batch) / accumulation)
    del values["train.num_train_epochs"]
    given.put("train.max_train_steps", steps, "num_train_epochs")
    given.notices.append(
        f"--num_train_epochs makes {steps} steps: an epoch of diffusers' script shows each of {pictures} class images"
    )
