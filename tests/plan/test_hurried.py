"""What a plan does for speed where it knows the card: SD 1.5 with a pair on one of 8 lanes, as the table of plans has it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainer.benchmarks import plans

from trainer.models import family
from trainer.plan import cards, command, planner
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine
from trainer.plan.phases import Rehearsals
from trainer.plan.plan import Plan


@pytest.fixture(scope="module")
def sd15():
    """Plans by preset; they share their simulations."""
    facts = family("sd1").public()
    shared = Rehearsals(plans.settings("sd1", "full", "4gb"), facts.family.build_meta(facts), "cuda")

    def made(preset: str, early: bool | None = None, **machine: object) -> Plan:
        config = plans.settings("sd1", "full", preset)
        config.memory.early_updates = early
        return planner.draft(config, facts, replace(Machine("cuda", cards.find("RTX 3050")), **machine), shared)

    return made


def test_a_narrow_bus_is_hidden_by_updates_that_do_not_wait_for_the_norm(sd15):
    """At 1.26 where each step has to be clipped."""
    plan = sd15("4gb")
    assert plan.fits and plan.policy.early_updates and plan.policy.reach_mb > 0
    assert plan.steps_per_second > 1.70 > 1.3 > plan.clipped_steps_per_second > 1.2
    said = command.table(plan)
    assert f"{plan.clipped_steps_per_second:.2f} steps a second" in said and "made again" in plan.explanation
    waiting = sd15("4gb", free_ram_bytes=plan.ram_peak_bytes - 1)
    assert waiting.fits and not waiting.policy.early_updates and waiting.clipped_steps_per_second is None
    # what may be taken back: state and weights of 0.86 billion
    assert plan.ram_peak_bytes > waiting.ram_peak_bytes + 2 * GIB


def test_state_that_streams_takes_the_place_of_recomputing_where_that_is_faster(sd15):
    plan = sd15("6gb", early=False)
    assert (plan.policy.checkpointing, plan.policy.stream) == ("off", "state")
    slower = sd15("6gb", early=False, free_ram_bytes=3 * GIB)
    assert (slower.policy.checkpointing, slower.policy.stream) == ("blocks", "off")
    assert plan.steps_per_second > 1.05 * slower.steps_per_second
