"""Checkpoints that are whole or absent: filled beside their place, then renamed (`whole_folder`).

A checkpoint holds what decides the rest of the run: weights, corrections and moments as the engine keeps them, the
moving average, the data order and every random generator. A run that is interrupted and resumed equals an
uninterrupted one bit for bit on the CPU. Every file's checksum stands in state.json, and its own in itself: a flipped bit
would go on as another run without a word.

    run/step-000400/engine.safetensors   the engine's state, by unit
                    ema.safetensors      where an average is kept
                    random.safetensors   generator states
                    state.json           step, run, time, policy, decks, what the run is made of, checksums, format version
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import ConfigError
from trainer.files import regular
from trainer.files.asked import like
from trainer.files.mapped import Stored, give_back
from trainer.files.regular import json_object
from trainer.files.safetensors_stream import Writer, header
from trainer.files.whole import remove, tidy, whole, whole_folder

FORMAT = 1
WAY_OUT = "resume from another checkpoint of the run, or start it again with --overwrite"
NAME = re.compile(r"step-(\d{6,})$|checkpoint-(\d+)$")  # the second is what diffusers' scripts call theirs


def folder(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def found(run: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first: by step, and where runs lie mixed, as in older folders, all of the
    run that wrote last come last."""
    named = (path for path in run.glob("*-*") if NAME.fullmatch(path.name))
    about = {path: says(path) for path in named if (path / "state.json").is_file()}
    last: dict[str, float] = {}  # when each run wrote for the last time
    for said in filter(None, about.values()):
        last[_run(said)] = max(last.get(_run(said), 0.0), _written(said))
    newest = max(last.values(), default=0.0)  # what cannot be read is taken for the newest run's, so that it is missed
    return sorted(about, key=lambda path: (last.get(_run(about[path]), newest), step_of(path)))


def says(checkpoint: Path) -> dict[str, Any]:
    """state.json, or nothing of it where it cannot be read: whoever wants that checkpoint is told by `read_state`."""
    try:
        return json_object(checkpoint / "state.json", WAY_OUT)
    except ConfigError:
        return {}


def _run(said: Mapping[str, Any]) -> str:
    """Which run wrote it; versions before did not say."""
    return str(said.get("run", "" if said else "unreadable"))


def _written(said: Mapping[str, Any]) -> float:
    written = said.get("written")
    return written if isinstance(written, (int, float)) else 0.0


def at(run: Path, step: int) -> Path | None:
    """The checkpoint of a step, whatever it is called."""
    return next((path for path in found(run) if step_of(path) == step), None)


def step_of(checkpoint: Path) -> int:
    own, theirs = NAME.fullmatch(checkpoint.name).groups()
    return int(own or theirs)


def locate(run: Path, wanted: str) -> Path | None:
    """The checkpoint `wanted` names: 'latest' (None where the run has none yet), a folder, or a folder's name in the run."""
    tidy(run, complete=lambda part: not damage(part))  # what a killed run had finished but not named yet counts
    if wanted == "latest":
        return found(run)[-1] if found(run) else None
    for path in (Path(wanted), run / wanted):
        if (path / "state.json").is_file():
            return path
    number = re.fullmatch(r"(?:checkpoint|step)-0*(\d+)", Path(wanted).name)
    if number and (point := at(run, int(number[1]))):  # 'checkpoint-4' may be our step-000004
        return point
    have = ", ".join(p.name for p in found(run)) or "none"
    raise ConfigError(
        f"There is no checkpoint {wanted!r}.", f"Name one of this run's checkpoints ({have}), or 'latest'."
    )


def set_aside(run: Path, *beside: str) -> Path | None:
    """An earlier run, and what is named in `beside`, moved to a folder of its own in `run`: a new run there would count its
    checkpoints among its own, prune its own for them and go on from the wrong one. Returns where it is, if there was one."""
    left = [path for path in (*found(run), *(run / name for name in beside)) if path.exists()]
    if not left:
        return None
    place = next(place for n in itertools.count(1) if not (place := run / f"earlier-{n}").exists())
    _move(left, place)
    return place


def leave_behind(point: Path) -> Path | None:
    """Checkpoints after `point` belong to a way that is not gone on with. Moved beside it, with the settings they were made
    with, to a folder whose name says so; returns where they are, if there were any."""
    run, step = point.parent, step_of(point)
    later = [path for path in found(run) if step_of(path) > step]
    if not later:
        return None
    names = (f"left-after-{step:06d}" + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
    place = next(place for name in names if not (place := run / name).exists())
    _move(later, place)
    if (run / "config.toml").is_file():
        with whole(place / "config.toml") as part:
            shutil.copy2(run / "config.toml", part)
    return place


def _move(paths: Iterable[Path], place: Path) -> None:
    place.mkdir()
    for path in paths:
        path.rename(place / path.name)


def require_space(path: Path, size_bytes: int, what: str) -> None:
    """ConfigError where the disk under `path` cannot take `size_bytes` more."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < size_bytes:
        raise ConfigError(
            f"The disk under {path} has {free / 1e9:.2f} GB free; {what} needs {size_bytes / 1e9:.2f} GB.",
            "Free space, lower --checkpoints_total_limit, or choose another --output_dir.",
        )


@dataclass(frozen=True)
class State:
    """What a checkpoint holds.

    engine:     weights, corrections and moments, as the engine keeps them
    average:    the moving average, where one is kept
    batches:    `Batches.state()`: the decks and, under "generator", what draws from them
    generators: torch's own, by device
    facts:      any JSON: policy, way of drawing, the model's digest
    """

    step: int
    engine: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    batches: dict[str, Any]
    generators: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(
            t.numel() * t.element_size()
            for tensors in (self.engine, self.average or {})
            for t in like(tensors).values()
        )

    def broken(self) -> str:
        """The first weight or moment that is no number any more; the engine's own counters begin as nan."""
        numbers = (name for name, t in like(self.engine).items() if t.is_floating_point())
        kept = (name for name in numbers if not name.startswith("engine."))
        return next((name for name in kept if not self.engine[name].isfinite().all()), "")


def save(run: Path, state: State, name: str = "") -> Path:
    """Write a checkpoint, as `name` or as our own names go, and return its folder."""
    final = run / name if name else folder(run, state.step)
    run.mkdir(parents=True, exist_ok=True)
    give_back()  # what the steps freed
    decks = {name: value for name, value in state.batches.items() if name != "generator"}
    written = {"format": FORMAT, "step": state.step, "written": time.time(), "batches": decks} | state.facts
    with whole_folder(final) as part:
        _write(part / "engine.safetensors", state.engine)
        if state.average is not None:
            _write(part / "ema.safetensors", state.average)
        _write(part / "random.safetensors", {"batches": state.batches["generator"]} | state.generators)
        written["files"] = {file.name: _checksum(file) for file in sorted(part.iterdir())}
        written["checksum"] = _own_checksum(written)
        (part / "state.json").write_text(json.dumps(written, indent=1))
    return final


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises ConfigError for one written by another version, or that was not written so."""
    path = checkpoint / "state.json"
    state = json_object(path, WAY_OUT)
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{checkpoint} was written in format {state.get('format')}; this version reads {FORMAT}.",
            "Resume with the version that wrote it, or start anew from its export.",
        )
    step, named = state.get("step"), NAME.fullmatch(checkpoint.name)
    if type(step) is not int or step < 0 or (named and step_of(checkpoint) != step):
        raise ConfigError(f"{path} is damaged: it says step {step!r}", WAY_OUT)
    if "checksum" in state and state["checksum"] != _own_checksum(state):
        raise ConfigError(f"{path} is damaged: it is not what was written", WAY_OUT)
    return state


def damage(checkpoint: Path) -> str:
    """The file of a checkpoint that is not what was written; empty: it is whole. Reads all of it."""
    try:
        state = read_state(checkpoint)
        files = state.get("files") or dict.fromkeys(("engine.safetensors", "random.safetensors"))
        for name, expected in files.items():
            header(checkpoint / name)
            if expected is not None and _checksum(checkpoint / name) != expected:
                return name
    except ConfigError:
        return "state.json"
    except (ValueError, OSError):
        return name
    return ""


def require_whole(checkpoint: Path) -> None:
    """ConfigError where a file of `checkpoint` is damaged; its fix names the newest one beside it that is whole."""
    if "format" in (state := json_object(checkpoint / "state.json", WAY_OUT)) and state["format"] != FORMAT:
        read_state(checkpoint)  # another version's: says so
    if broken := damage(checkpoint):
        others = [path for path in reversed(found(checkpoint.parent)) if path != checkpoint]
        way_out = next((path.name for path in others if not damage(path)), None)
        raise ConfigError(
            f"{checkpoint.name} is damaged ({broken} is not what was written)",
            f"{way_out} is whole: --resume_from_checkpoint {way_out}" if way_out else WAY_OUT,
        )


def load(checkpoint: Path) -> State:
    """All of a checkpoint. The tensors of engine and average lie in their files: copy what is to stay."""
    facts = read_state(checkpoint)
    generators = load_file(checkpoint / "random.safetensors")
    batches = facts["batches"] | {"generator": generators.pop("batches")}
    average = checkpoint / "ema.safetensors"
    return State(
        facts["step"],
        Stored(checkpoint / "engine.safetensors"),
        Stored(average) if average.exists() else None,
        batches,
        generators,
        facts,
    )


def prune(run: Path, limit: int | None, keep: Path | None = None, kind: str = "step") -> list[Path]:
    """Delete the oldest checkpoints of a kind of name ("step", "checkpoint") beyond `limit`, never `keep` (the best one) and
    never another run's than that which wrote last; returns what went."""
    if limit is None:
        return []
    there = found(run)
    named = [path for path in there if path.name.startswith(f"{kind}-") and _run(says(path)) == _run(says(there[-1]))]
    old = [path for path in named[:-limit] if path != keep]
    for path in old:
        remove(path)
    return old


def size_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _checksum(path: Path) -> str:
    with regular.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_checksum(state: Mapping[str, Any]) -> str:
    """Of everything else in state.json."""
    rest = {name: value for name, value in state.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Piece by piece, wherever the tensors are: a checkpoint takes no memory beside what it saves."""
    shapes = {name: tuple(tensor.shape) for name, tensor in like(tensors).items()}
    with Writer(path, shapes, {name: tensor.dtype for name, tensor in like(tensors).items()}, {}) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
