"""Run folders that cannot be gone on with: what becomes of one that holds a whole checkpoint of step 2."""

import os
from pathlib import Path


def point(run: Path) -> Path:
    return run / "step-000002"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


RUNS = {
    "state-empty": (
        lambda run: (point(run) / "state.json").write_text(""),
        "step-000002/state.json is damaged: it is not JSON",
    ),
    "state-cut": (
        lambda run: (point(run) / "state.json").write_text('{"format": 1, "st'),
        "step-000002/state.json is damaged: it is not JSON",
    ),
    "state-a-list": (
        lambda run: (point(run) / "state.json").write_text("[]"),
        "step-000002/state.json is damaged: it holds no JSON object",
    ),
    "state-deep": (
        lambda run: (point(run) / "state.json").write_text("[" * 9999 + "]" * 9999),
        "step-000002/state.json is damaged: it is not JSON",
    ),
    "state-of-the-future": (
        lambda run: (point(run) / "state.json").write_text('{"format": 99, "step": 2}'),
        "step-000002 was written in format 99; this version reads 1.",
    ),
    "state-step-negative": (
        lambda run: (point(run) / "state.json").write_text('{"format": 1, "step": -5}'),
        "step-000002 is damaged (state.json is not what was written)",
    ),
    "state-step-text": (
        lambda run: (point(run) / "state.json").write_text('{"format": 1, "step": "2"}'),
        "step-000002 is damaged (state.json is not what was written)",
    ),
    "state-another-step": (
        lambda run: (point(run) / "state.json").write_text('{"format": 1, "step": 7}'),
        "step-000002 is damaged (state.json is not what was written)",
    ),
    "engine-gone": (
        lambda run: (point(run) / "engine.safetensors").unlink(),
        "step-000002 is damaged (engine.safetensors is not what was written)",
    ),
    "engine-empty": (
        lambda run: (point(run) / "engine.safetensors").write_bytes(b""),
        "step-000002 is damaged (engine.safetensors is not what was written)",
    ),
    "engine-flipped": (
        lambda run: flip(point(run) / "engine.safetensors"),
        "step-000002 is damaged (engine.safetensors is not what was written)",
    ),
    "random-gone": (
        lambda run: (point(run) / "random.safetensors").unlink(),
        "step-000002 is damaged (random.safetensors is not what was written)",
    ),
    "random-a-pipe": (
        lambda run: ((point(run) / "random.safetensors").unlink(), os.mkfifo(point(run) / "random.safetensors")),
        "step-000002 is damaged (random.safetensors is not what was written)",
    ),
    "renamed": (
        lambda run: point(run).rename(run / "step-000009"),
        "step-000009 is damaged (state.json is not what was written)",
    ),
}

# the same, with what is typed after `--output_dir run`
TYPED = {
    "beyond-the-end": (
        lambda run: None,
        "--resume_from_checkpoint latest --max_train_steps 1",
        "step-000002 was written after step 2, and this run ends with step 1",
    ),
    "not-asked-to-go-on": (lambda run: None, "--max_train_steps 9", "run"),
    "step-that-is-not-there": (
        lambda run: None,
        "--resume_from_checkpoint step-000004 --max_train_steps 9",
        "step-000004",
    ),
}
