"""A plan that does not hold is made again, once: the run goes on by a smaller one, to the same bits.

Plans are those for a card of 0.67 GiB, and a CPU follows them. What only a card can show, the bytes that it takes, is told to
the one function that reads them.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import events, of, prepared

from trainer.events import CheckpointSaved, Finished, Meters, Notice, PlanReady, Step
from trainer.out import checkpoint
from trainer.plan import cards, inputs
from trainer.plan.calibration import ASSUMED, MIB
from trainer.policy import Policy
from trainer.run.measured import again

BUDGET = 689 * MIB  # a step keeps everything in 687.8; no other phase needs more than 683.3
MORE = ("--vram_gb", BUDGET / 2**30, "--train_batch_size", 8)
SMALLER = {4.2: {"checkpointing": "blocks", "stream": "off"}, 6.4: {"checkpointing": "blocks", "stream": "state"}}


@pytest.fixture
def card(monkeypatch):
    """Plans are for this card; `card(MiB)` has more beside all tensors."""

    def put(beside: float = 0.0) -> None:
        more = replace(ASSUMED.workspaces, amount=ASSUMED.workspaces.amount + beside * MIB)
        made = inputs.Machine("cuda", cards.find("RTX 3060"), constants=replace(ASSUMED, workspaces=more))
        monkeypatch.setattr(inputs, "at_hand", lambda *words: made)

    put()
    return put


@pytest.fixture
def takes(monkeypatch):
    """What the process is seen to take beyond what was planned, MiB, whenever it is looked at."""
    looked = []

    def put(beyond: float) -> list[int]:
        def taken(run) -> int:
            looked.append(again.planned(run.plan))
            return again.planned(run.plan) + int(beyond * MIB)

        monkeypatch.setattr(again, "taken", taken)
        monkeypatch.setattr(again, "NOISE", 0)
        return looked

    return put


def last(place, run: str) -> tuple[dict[str, torch.Tensor], Policy]:
    point = checkpoint.found(place / run)[-1]
    return load_file(point / "engine.safetensors"), Policy.from_json(checkpoint.read_state(point)["policy"])


@pytest.mark.parametrize("beyond", SMALLER)
def test_a_run_that_takes_more_than_planned_goes_on_by_a_smaller_plan_to_the_same_bits(place, card, takes, beyond):
    name = f"outgrown-{beyond}"
    looked = takes(beyond)
    found = events(place, *MORE, run=name)
    assert of(Finished, found)[0].status == "done" and [step.step for step in of(Step, found)] == [1, 2, 3, 4]
    assert len(looked) == 1, "it is looked once"
    assert [event.kind for event in of(CheckpointSaved, found)] == ["moved", "last"]
    assert len(of(PlanReady, found)) == 2
    assert any("Behind the second step the run takes" in event.text for event in of(Notice, found))
    assert len(checkpoint.found(place / name)) == 1, "what was written for the move is gone"
    moved, policy = last(place, name)
    assert {field: getattr(policy, field) for field in SMALLER[beyond]} == SMALLER[beyond]

    card(beside=beyond)  # known from the beginning
    takes(0)
    events(place, *MORE, run=f"{name}-small")
    small, chosen = last(place, f"{name}-small")
    assert policy == chosen and moved.keys() == small.keys()
    assert all(torch.equal(moved[key], small[key]) for key in small)


def test_a_phase_that_is_still_to_come_is_planned_anew_before_it_finds_no_memory(place, card, takes):
    """A step keeps to the budget, 684 MiB, with 1.2 more than its 682.2; to export needs 683.3 and has to keep to it, too."""
    takes(1.2)
    found = events(place, "--vram_gb", 684 / 1024, "--train_batch_size", 1, run="coming")
    assert of(Finished, found)[0].status == "done"
    first, second = of(PlanReady, found)
    assert any("so phase export would take" in event.text for event in of(Notice, found))
    assert second.phases["export"] <= 684 * MIB < first.phases["export"] + 1.2 * MIB


def test_the_settings_of_the_run_are_those_of_the_second_plan(place, card, takes):
    takes(4.2)
    events(place, *MORE, "--checkpointing_steps", 2, run="told")
    text = (place / "told" / "config.toml").read_text()
    assert '# checkpointing = "blocks"  # planner' in text
    steps = [checkpoint.step_of(path) for path in checkpoint.found(place / "told")]
    assert steps == [2, 4], "a checkpoint that was due stays"


def test_everything_that_resumes_is_carried_over(place, card, takes):
    """A moving average, the generator that leaves captions out, and the guard's readings."""
    line = (*MORE, "--ema", "--watch", "--interval", 2, "--caption_dropout", 0.3)
    takes(0.0)
    whole = events(place, *line, run="whole")
    takes(4.2)
    carried = events(place, *line, run="carried")
    assert (len(of(PlanReady, whole)), len(of(PlanReady, carried))) == (1, 2)
    averages = [load_file(checkpoint.found(place / run)[-1] / "ema.safetensors") for run in ("whole", "carried")]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
    read = [[(event.step, event.values["held-out loss"]) for event in of(Meters, found)] for found in (whole, carried)]
    assert read[0] == read[1] and [step for step, _ in read[1]][:2] == [0, 2], "no reading is lost or taken twice"


def test_a_step_that_finds_no_memory_begins_again_by_a_smaller_plan(place, card, monkeypatch):
    told = []

    def taken(run) -> int:
        told.append(run.plan.policy)
        if len(told) == 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.00 MiB. GPU 0 has a total capacity of"
            )
        return 0

    monkeypatch.setattr(again, "taken", taken)
    monkeypatch.setattr(again, "SLACK", 3 * MIB)
    monkeypatch.setattr(again, "NOISE", 0)
    found = events(place, *MORE, run="no-memory")
    assert of(Finished, found)[0].status == "done"
    assert [step.step for step in of(Step, found)] == [1, 1, 2, 3, 4], "nothing of what broke off is kept"
    assert any("Before its second step was done" in event.text for event in of(Notice, found))
    ours, policy = last(place, "no-memory")
    assert policy.checkpointing == "blocks"
    monkeypatch.setattr(again, "taken", lambda run: 0)
    events(place, *MORE, run="memory")
    theirs, _ = last(place, "memory")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_finds_no_memory_again_says_so(place, card, monkeypatch):
    def taken(run) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(again, "taken", taken)
    found = events(place, *MORE, run="never")
    assert of(Finished, found)[0].status == "failed" and "out of memory" in of(Finished, found)[0].error


def test_where_no_smaller_plan_fits_training_goes_on_and_that_is_said(place, card, takes):
    takes(500.0)
    found = events(place, *MORE, run="stays")
    assert of(Finished, found)[0].status == "done" and len(of(PlanReady, found)) == 1
    assert any("No smaller plan" in event.text for event in of(Notice, found))


def test_a_plan_that_holds_or_has_no_budget_is_left_alone(place, card, takes):
    looked = takes(1.0)
    found = events(place, *MORE, run="holds")
    assert len(looked) == 1 and len(of(PlanReady, found)) == 1
    takes(1000.0)
    assert len(of(PlanReady, events(place, run="boundless"))) == 1


def test_a_cpu_takes_nothing_of_a_card(place):
    assert again.taken(prepared(place, run="cpu")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_everything_that_the_process_has_of_it_is_counted(monkeypatch):
    monkeypatch.setattr(again.vitals, "own_bytes", lambda device: None)  # as where the driver does not say
    device = torch.device("cuda", 0)
    block = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    free, _ = torch.cuda.mem_get_info(device)
    machine = inputs.Machine("cuda", free_vram_bytes=free + torch.cuda.memory_reserved(device) + 700 * MIB)
    plan, basis = SimpleNamespace(constants=ASSUMED), SimpleNamespace(machine=machine)
    found = again.taken(SimpleNamespace(device=device, plan=plan, basis=basis))
    assert block.nbytes + 700 * MIB <= found < torch.cuda.max_memory_reserved(device) + 800 * MIB


@pytest.mark.parametrize(
    "said,size",
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0", 2560 * MIB),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 20 * MIB),
        ("Allocation on device", 0),
    ],
)
def test_what_was_asked_for_in_vain_is_read_from_torchs_words(said, size):
    assert again.asked_for(said) == size


def test_a_smaller_plan_keeps_the_formats_and_what_somebody_asked_for(place, card):
    run = prepared(place, *MORE, run="formats")
    found = again.smaller(run, again.planned(run.plan) + int(4.2 * MIB))
    assert found.policy.checkpointing == "blocks" and found.policy.weights == run.plan.policy.weights
    fixed = prepared(place, *MORE, "--checkpointing", "off", "--stream", "off", run="fixed")
    assert again.smaller(fixed, again.planned(fixed.plan) + int(4.2 * MIB)) is None
