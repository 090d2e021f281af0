"""A plan as a value: its peaks, whether it fits, what it tells, and the line for machines."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from trainer.events import Notice, PlanReady
from trainer.plan.plan import PhasePlan, Plan
from trainer.policy import Drawing, Policy

PHASES = (PhasePlan("load", 10, 50), PhasePlan("train", 30, 20, {"weights": 12, "activations": 18}))
PLAN = Plan(
    "sd1", "full", "4gb", 30, Policy(compute=torch.bfloat16), Drawing(), {"memory.stream": "off"}, PHASES, 25, 70, 1.5, "a card",
    "because", ("mind the RAM",),
)  # fmt: skip


def test_peaks_are_each_memorys_own_and_may_lie_in_different_phases():
    assert (PLAN.vram_peak_bytes, PLAN.ram_peak_bytes) == (30, 50)
    assert replace(PLAN, phases=()).vram_peak_bytes == 0


def test_a_plan_fits_up_to_its_last_byte_and_always_without_a_budget():
    assert PLAN.fits and not replace(PLAN, budget_bytes=29).fits
    assert replace(PLAN, budget_bytes=None).fits


def test_the_event_speaks_of_the_largest_phase_and_warnings_follow_it():
    ready, warning = PLAN.events()
    assert isinstance(ready, PlanReady) and ready.phases == {"load": 10, "train": 30}
    assert ready.parts == {"weights": 12, "activations": 18} and ready.budget_bytes == 30
    assert isinstance(warning, Notice) and (warning.text, warning.level) == ("mind the RAM", "warning")


def test_on_a_cpu_the_largest_phase_is_that_of_the_ram():
    (ready, *_) = replace(
        PLAN, phases=(PhasePlan("a", 0, 5, {"weights": 5}), PhasePlan("b", 0, 9, {"moments": 9}))
    ).events()
    assert ready.parts == {"moments": 9}


def test_the_line_for_machines_survives_json_with_every_phase():
    line = json.loads(json.dumps(PLAN.as_json()))
    assert line["fits"] and line["vram_peak_bytes"] == 30 and line["steps_per_second"] == 1.5
    assert line["phases"][1] == {
        "name": "train",
        "vram_bytes": 30,
        "ram_bytes": 20,
        "parts": {"weights": 12, "activations": 18},
    }
