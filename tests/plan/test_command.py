"""What `python -m trainer plan` prints: a table, a bar, the settings, and what is assumed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from trainer.errors import ConfigError
from trainer.plan import cards, command
from trainer.plan.calibration import ASSUMED, GIB, Value, gib
from trainer.plan.inputs import Machine
from trainer.plan.plan import PhasePlan, Plan
from trainer.policy import Drawing, Policy
from trainer.settings import overlay
from trainer.settings.config import Config


def small() -> Config:
    return overlay.load({"model.name": "demo"})


LOAD = PhasePlan("load", GIB, 2 * GIB, {"weights": GIB})
TRAIN = PhasePlan("train", 3 * GIB, 2 * GIB, {"weights": GIB, "activations": 2 * GIB, "moments": 1000})
PLAN = Plan(
    "sd1", "full", "4gb", 4 * GIB, Policy(compute=torch.bfloat16), Drawing(), {"memory.stream": "off", "memory.tile": None},
    (LOAD, TRAIN), 2 * GIB, 5 * GIB, None, "RTX 3050", "Everything stays on the card.", ("RAM is tight",),
)  # fmt: skip


def test_the_bar_is_the_largest_phase_against_the_budget_a_letter_for_each_kind():
    drawn, legend = command.bar(PLAN).splitlines()
    assert drawn == f"train: [{'W' * 15}{'A' * 30}{'.' * 15}] 3.00 GiB of 4.00 GiB"
    assert legend.strip() == "W weights, A activations"  # 1000 bytes of moments are no letter


def test_without_a_budget_the_bar_is_full():
    drawn = command.bar(replace(PLAN, budget_bytes=None)).splitlines()[0]
    assert "." not in drawn.partition("]")[0] and "of" not in drawn.partition("]")[2]


def test_what_rounds_to_nothing_is_left_out_of_a_phases_parts():
    assert command.parts(TRAIN.parts) == "weights 1.00 + activations 2.00"


def test_the_table_has_a_line_for_every_phase_and_says_what_was_chosen_and_what_is_assumed():
    text = command.table(PLAN)
    lines = text.splitlines()
    assert lines[0] == "sd1, full, preset 4gb"
    assert [line.split()[0] for line in lines[2:5]] == ["phase", "load", "train"]
    assert "settings: stream off\n" in text  # what is left open is not listed
    assert "Everything stays on the card." in text and "disk: 5.00 GiB" in text
    assert "assumed, not measured" in text and lines[-1] == "warning: RAM is tight"
    assert "steps a second" not in text and "1.50 steps a second on a RTX 3050" in command.table(
        replace(PLAN, steps_per_second=1.5)
    )


def test_the_assumed_numbers_have_upper_ends_and_measured_ones_are_called_so():
    text = command.table(PLAN)
    tensors = [p.vram_bytes - sum(p.parts.get(k, 0) for k in ASSUMED.overhead(0)) for p in PLAN.phases]
    assert "context 0.65 GiB, workspaces 0.25 GiB, the allocator's share 6 %" in text
    assert f"the plan takes {gib(max(map(ASSUMED.upper.process, tensors)))}" in text
    seen = replace(ASSUMED, context=replace(ASSUMED.context, here=True), flops=Value(1e12, True, "", here=True))
    text = command.table(replace(PLAN, constants=seen, steps_per_second=1.5))
    assert "workspaces and the allocator's share are assumed" in text and "context 0.65" not in text
    assert "rates of this card" in text
    every = {name: replace(value, here=True) for name, value in ASSUMED.values().items()}
    assert "were measured on this card" in command.table(replace(PLAN, constants=replace(ASSUMED, **every)))


def test_without_a_model_the_plan_is_the_demos_and_with_a_preset_stable_diffusions():
    assert command.facts_for(overlay.load({})).kind == "demo"
    assert command.facts_for(overlay.load({"preset": "12gb", "model.family": "sdxl"})).family.name == "sdxl"


def test_a_model_of_the_hub_that_is_not_here_is_planned_from_its_familys_public_configuration():
    asked = overlay.load({"model.name": "somebody/some-sdxl-model"})
    assert command.facts_for(asked).family.name == "sdxl"
    with pytest.raises(ConfigError):
        command.facts_for(overlay.load({"model.name": "./no-such-folder"}))


def test_a_preset_without_a_card_is_estimated_for_the_card_it_is_meant_for(capsys):
    for preset, name in cards.USUAL.items():
        assert command.supposed(small(), Machine("cuda")).card is None
        config = overlay.load({"preset": preset})
        card = command.supposed(config, Machine("cuda")).card
        assert card.name == name and card.bf16  # so that the settings are those of a plan without a card
        assert card.vram_gb >= config.memory.vram_gb
    config = overlay.load({"preset": "12gb", "model.name": "demo"})
    assert command.main(config, as_json=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps_per_second"] > 0


def test_a_card_that_is_here_is_not_taken_for_another_one():
    config = overlay.load({"preset": "12gb"})
    here = Machine("cuda", None, 8 * GIB, 8 * GIB)  # its rates are unknown
    assert command.supposed(config, here) is here
    assert command.supposed(config, Machine("cpu")).card is None
