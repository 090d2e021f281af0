"""A refusal says what stands in the way, and names only ways out that were planned and fit."""

from __future__ import annotations

import re

import pytest
import torch

from trainer.errors import ConfigError
from trainer.plan import command, planner, refusal, solver
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine
from trainer.plan.plan import PhasePlan, Plan
from trainer.policy import Drawing, Policy
from trainer.settings import overlay
from trainer.settings.config import Config

CARD = Machine("cuda")


def config(**flags: object) -> Config:
    """Settings that cost little to plan: the built-in model's shapes."""
    asked = {"model.name": "demo", "prior.with_prior_preservation": True}
    return overlay.load(asked | {key.replace("__", "."): value for key, value in flags.items()})


@pytest.fixture(scope="module")
def facts():
    return command.facts_for(config())


def draft(facts, **flags: object) -> Plan:
    return planner.draft(config(**flags), facts, CARD)


def plan_of(*gib: float, budget: float = 4.0) -> Plan:
    """A plan whose phases take so many GiB; the first is the step."""
    phases = tuple(PhasePlan(f"phase {i}", int(size * GIB), 0) for i, size in enumerate(gib))
    policy = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16)
    return Plan("sdxl", "full", "4gb", int(budget * GIB), policy, Drawing(), {}, phases, 0, 0, None, "", "")


def test_the_largest_phase_is_named_with_what_it_needs_and_what_there_is():
    said = refusal.refuse(plan_of(5.0, 6.25), None, config(), [])
    assert said.what == "sdxl (full) does not fit 4.00 GiB: the phase 'phase 1' needs 6.25 GiB at least."


def test_the_budget_that_would_do_is_rounded_up():
    assert "--vram_gb 6.3 (this plan takes 6.25 GiB)" in refusal.refuse(plan_of(6.25), None, config(), []).fix


@pytest.mark.parametrize("step_gib,named", [(3.0, True), (7.0, False)])
def test_a_setting_that_somebody_made_is_blamed_only_where_the_step_is_smaller_without_it(step_gib, named):
    asked = config(memory__checkpointing="off", memory__moments="fp32")
    better = solver.Found(Policy(), int(step_gib * GIB), "", True)
    fix = refusal.refuse(plan_of(6.0), better, asked, []).fix
    assert ("no --moments fp32 --checkpointing off (the step then takes 3.00 GiB)" in fix) is named


def test_other_ways_come_after_the_budget_in_their_order():
    fix = refusal.refuse(plan_of(6.0), None, config(), ["--method lora (from 3.00 GiB)", "--resolution 768"]).fix
    assert fix.endswith("(this plan takes 6.00 GiB), or --method lora (from 3.00 GiB), or --resolution 768.")


def test_only_memory_settings_that_somebody_made_are_asked_for_in_the_order_of_the_techniques():
    assert refusal.asked_for(config()) == []
    assert refusal.asked_for(config(memory__stream="state", memory__weights="24bit")) == ["weights", "stream"]


def test_an_impossible_budget_is_refused_with_the_nearest_plan(facts):
    with pytest.raises(ConfigError) as refused:
        planner.plan(config(memory__vram_gb=0.61), facts, "cuda", CARD)
    assert "does not fit" in refused.value.what
    assert "--vram_gb" in refused.value.fix


def test_every_way_out_that_a_refusal_names_fits(facts):
    asked = {"memory__vram_gb": 0.75, "train__train_batch_size": 256}
    made = draft(facts, **asked)
    batch = re.search(r"--train_batch_size (\d+)", made.refusal.fix)
    assert batch
    assert draft(facts, **asked | {"train__train_batch_size": int(batch[1])}).fits
    assert ("--method lora" in made.refusal.fix) == draft(facts, **asked, train__method="lora").fits


def test_a_way_out_that_does_not_fit_either_is_not_named(facts):
    made = draft(facts, memory__vram_gb=0.605, train__train_batch_size=2)
    assert made.refusal.fix.startswith("Nearest plans that fit: --vram_gb 0.7 (")
    assert ", or" not in made.refusal.fix
