"""Numbers beside the tensors: assumed ones and their upper ends, what a card says of itself, and several cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.plan import calibration, cards
from trainer.plan.calibration import ASSUMED, GIB, Value
from trainer.plan.simulate import Watched
from trainer.plan.timeline import Entry

SEEN = Value(0.5 * GIB, True, "this card", here=True)


def test_a_process_takes_its_tensors_and_what_stands_beside_them():
    beside = ASSUMED.overhead(10 * GIB)
    assert list(beside) == ["context", "workspaces", "allocator"]
    assert beside["allocator"] == int(0.04 * 10 * GIB)
    assert ASSUMED.process(10 * GIB) == 10 * GIB + sum(beside.values())


def test_the_upper_ends_are_an_experts_for_what_is_assumed_and_leave_alone_what_was_measured_here():
    upper = ASSUMED.upper
    assert (upper.context.amount, upper.workspaces.amount, upper.allocator.amount) == (0.65 * GIB, 0.25 * GIB, 0.06)
    assert upper.launch == ASSUMED.launch
    known = replace(ASSUMED, context=SEEN).upper
    assert known.context == SEEN and known.allocator.amount == 0.06


def test_what_was_measured_on_this_card_is_said_apart_from_what_was_not():
    assert ASSUMED.said(here=True) == [] and len(ASSUMED.said(here=False)) == len(calibration.WORDS)
    known = replace(ASSUMED, context=SEEN, bus=Value(20e9, True, "this card", here=True))
    assert known.said(here=True) == ["context 0.50 GiB", "the bus 20.0 GB/s"]
    assert "workspaces" in known.said(here=False) and "the bus" not in known.said(here=False)


def test_a_measured_rate_takes_the_place_of_the_published_one():
    card, work = cards.find("RTX 3060"), Watched(timeline=(Entry("end", int(1e12), 0, 1),))
    slow = replace(ASSUMED, flops=Value(1e12, True, "this card", here=True))
    assert cards.seconds(work, card, constants=slow) == pytest.approx(1, rel=0.01)
    assert cards.seconds(work, card) < 0.2
    assert cards.speeds(card).bus == card.bus * 1e9
    assert cards.speeds(card, constants=replace(slow, bus=Value(5e9, True, "", here=True))).bus == 5e9


def test_cards_that_follow_one_plan_are_planned_with_the_costliest_number_of_each():
    one = replace(ASSUMED, context=replace(SEEN, amount=GIB), flops=replace(SEEN, amount=5e12), bus=SEEN)
    two = replace(ASSUMED, context=SEEN, launch=replace(SEEN, amount=1e-3), flops=replace(SEEN, amount=4e12))
    both = calibration.worse([one, two])
    assert both.context.amount == GIB and both.launch.amount == 1e-3 and both.flops.amount == 4e12
    assert both.bus is None, "of one of them only the published rate is known"
    assert calibration.worse([one]) == one
