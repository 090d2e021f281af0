"""A plan held against what happened, and corrected by what a probe measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.errors import ConfigError
from trainer.plan import calibration
from trainer.plan.calibration import GIB, MIB
from trainer.plan.here import measured
from trainer.plan.plan import PhasePlan, Plan
from trainer.policy import Drawing, Policy


def phase(name: str, tensors: int) -> PhasePlan:
    extra = calibration.ASSUMED.overhead(tensors)
    return PhasePlan(name, tensors + sum(extra.values()), GIB, {"standing": tensors} | extra)


PLAN = Plan(
    model="demo", mode="full", preset="", budget_bytes=4 * GIB, policy=Policy(), drawing=Drawing(), settings={},
    phases=(phase("train", 2 * GIB), phase("sample", GIB)), step_tensor_bytes=2 * GIB, disk_bytes=0, steps_per_second=None,
    card="", explanation="",
)  # fmt: skip


def test_a_plan_is_held_against_what_happened_and_a_deviation_makes_a_report_line():
    planned = {p.name: p.vram_bytes - sum(p.parts[k] for k in calibration.ASSUMED.overhead(0)) for p in PLAN.phases}
    text, notices = measured.compare(PLAN, {"train": int(planned["train"] * 1.01)})
    assert "train" in text
    assert notices == []
    _, notices = measured.compare(PLAN, {"train": planned["train"] + GIB})
    assert "[plan] model=demo" in notices[0].fix
    assert "measured=" in notices[0].fix


def test_workspaces_that_libraries_take_from_the_allocator_are_no_deviation():
    """On an H200 the demo's 0.09 GiB of tensors were measured as 0.16: cuBLAS and cuDNN had the rest, which is planned."""
    small = replace(PLAN, phases=(phase("train", 100 * MIB),))
    assert measured.compare(small, {"train": 166 * MIB})[1] == []
    assert measured.compare(small, {"train": 500 * MIB})[1] and measured.compare(small, {"train": 30 * MIB})[1]


def test_a_probe_corrects_the_phases_it_measured_and_no_others():
    after = measured.corrected(PLAN, {"train": 3 * GIB})
    train = next(p for p in after.phases if p.name == "train")
    assert train.vram_bytes == 3 * GIB + sum(calibration.ASSUMED.overhead(3 * GIB).values())
    assert [p for p in after.phases if p.name != "train"] == [p for p in PLAN.phases if p.name != "train"]
    assert "Measured by the probe" in next(iter(after.events())).text
    assert "does not fit" in measured.corrected(PLAN, {"train": 4 * GIB}).warnings[0]
    with pytest.raises(ConfigError, match="CUDA"):
        measured.probe(PLAN, "cpu", {})
