"""What a format loses, on the built-in model: rounding to nearest keeps next to nothing at Stable Diffusion's rate."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import formats
from trainer.kernels.adamw_lowbit import State, step_

from trainer.step import updates

TINY = Options(tiny=True)


def on_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def test_rounding_to_nearest_forgets_what_the_correction_bits_would_have_kept():
    start = (
        torch.randn(256).bfloat16().float()
    )  # 24 bits hold it exactly: fp32 rounded to 24 and then to 16 is rounded twice
    for around, kept in ((nullcontext, True), (formats.nearest, False)):
        state = State.allocate(256, weights="24bit", moments="8bit", compute_dtype=torch.bfloat16, empty=on_the_cpu)
        state.initialise(start)
        with around():
            updates.step_(state, torch.ones(256), lr=1e-6, step=1)
        large = start.abs() > 0.01  # where half a unit in bf16's last place is more than the update
        assert torch.equal(state.master()[large], start.bfloat16().float()[large]) != kept
    assert updates.step_ is step_


def test_the_distance_of_a_run_to_itself_is_nothing_and_of_no_training_everything():
    moved = {"a": torch.randn(5).double(), "b": torch.randn(3).double()}
    assert formats.distance(moved, moved) == {"update_error": 0.0, "update_kept": 1.0}
    still = {name: torch.zeros_like(value) for name, value in moved.items()}
    assert formats.distance(still, moved) == {"update_error": 1.0, "update_kept": 0.0}


def test_24_bits_learn_on_the_built_in_model_what_fp32_learns_and_plain_bf16_does_not():
    rows = {row["format"]: row for row in formats.suite(TINY)}
    before, exact, ours, nearest = (rows[name]["instance_loss"] for name in ("before training", *formats.TINY))
    assert exact < before and abs(ours - exact) < 0.1 * (before - exact)
    assert nearest > (before + exact) / 2
    assert rows[formats.NEAREST]["update_kept"] < 0.1 < 0.9 < rows["24 bits, 8-bit moments"]["update_kept"]
