"""Checkpoints that are whole or absent: filled beside their place, then renamed (`whole_folder`).

A checkpoint holds what decides the rest of the run: weights, corrections and moments as the engine keeps them, the
moving average, the data order and every random generator. A run that is interrupted and resumed equals an
uninterrupted one bit for bit on the CPU.

    run/step-000400/engine.safetensors   the engine's state, by unit
                    ema.safetensors      where an average is kept
                    random.safetensors   generator states
                    state.json           step, policy, decks, format version
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import ConfigError
from trainer.files.mapped import Stored, give_back
from trainer.files.safetensors_stream import Writer
from trainer.files.whole import remove, whole_folder

FORMAT = 1
NAME = re.compile(r"step-(\d{6,})$")


def folder(run: Path, step: int) -> Path:
    return run / f"step-{step:06d}"


def found(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((p for p in run.glob("step-*") if NAME.search(p.name) and (p / "state.json").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(NAME.search(checkpoint.name)[1])


def locate(run: Path, wanted: str) -> Path | None:
    """The checkpoint `wanted` names: 'latest' (None where the run has none yet), a folder, or a folder's name in the run."""
    if wanted == "latest":
        return found(run)[-1] if found(run) else None
    for path in (Path(wanted), run / wanted, run / wanted.replace("checkpoint-", "step-")):
        if (path / "state.json").is_file():
            return path
    have = ", ".join(p.name for p in found(run)) or "none"
    raise ConfigError(
        f"There is no checkpoint {wanted!r}.", f"Name one of this run's checkpoints ({have}), or 'latest'."
    )


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


def save(
    run: Path, step: int, engine: Mapping[str, Tensor], *, ema: Mapping[str, Tensor] | None, batches: dict, facts: dict
) -> Path:
    """Write a checkpoint and return its folder. `batches` is Batches.state(); `facts` is any JSON (policy, config digest)."""
    final = folder(run, step)
    run.mkdir(parents=True, exist_ok=True)
    give_back()  # what the steps freed
    state = {"format": FORMAT, "step": step, "batches": {k: v for k, v in batches.items() if k != "generator"}} | facts
    with whole_folder(final) as part:
        _write(part / "engine.safetensors", engine)
        if ema is not None:
            _write(part / "ema.safetensors", ema)
        _write(part / "random.safetensors", _generators(batches["generator"]))
        (part / "state.json").write_text(json.dumps(state, indent=1))
    return final


def read_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint. Raises ConfigError for one written by another version."""
    state = json.loads((checkpoint / "state.json").read_text())
    if state["format"] != FORMAT:
        raise ConfigError(
            f"{checkpoint} was written in format {state['format']}; this version reads {FORMAT}.",
            "Resume with the version that wrote it, or start anew from its export.",
        )
    return state


def load(checkpoint: Path) -> tuple[dict, Mapping[str, Tensor], Mapping[str, Tensor] | None, dict]:
    """(state, engine, ema, batches) of a checkpoint; also puts torch's own generators back where they were. The tensors
    of engine and ema lie in their files: copy what is to stay."""
    state = read_state(checkpoint)
    random = load_file(checkpoint / "random.safetensors")
    torch.set_rng_state(random["torch"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    ema = checkpoint / "ema.safetensors"
    batches = state["batches"] | {"generator": random["batches"]}
    return state, Stored(checkpoint / "engine.safetensors"), Stored(ema) if ema.exists() else None, batches


def prune(run: Path, limit: int | None, keep: Path | None = None) -> list[Path]:
    """Delete the oldest checkpoints beyond `limit`, never `keep` (the best one); returns what went."""
    if limit is None:
        return []
    old = [p for p in found(run)[:-limit] if p != keep]
    for path in old:
        remove(path)
    return old


def size_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Piece by piece, wherever the tensors are: a checkpoint takes no memory beside what it saves."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with Writer(path, shapes, {name: tensor.dtype for name, tensor in tensors.items()}, {}) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)


def _generators(batches: Tensor) -> dict[str, Tensor]:
    states = {"batches": batches, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
