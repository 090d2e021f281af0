"""A step played back on five clocks: what hides, what does not, and who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policies import LOW
from small_unet import Model, batch

from trainer.machine import host
from trainer.plan import timeline
from trainer.plan.simulate import Tracker
from trainer.plan.timeline import Entry, Speeds
from trainer.policy import Policy
from trainer.step.engine import Engine

SPEEDS = Speeds(flops=100.0, bandwidth=100.0, bus=10.0, duplex=0.5, launch=0.0)


def step(*entries: Entry) -> float:
    return timeline.seconds([*entries, Entry("end", 0, 0, 0)], SPEEDS)


def work(kind: str, flops: int = 0, **rest: int) -> Entry:
    return Entry(kind, flops, 0, 1, **rest)


def test_a_copy_hides_behind_the_work_that_is_queued_before_its_wait():
    assert step(work("up", number=1, size=20), work("wait", flops=300, number=1)) == pytest.approx(3.0)
    assert step(work("up", number=1, size=20), work("wait", number=1), work("end", flops=300)) == pytest.approx(5.0)


def test_a_copy_begins_behind_the_work_before_it_and_behind_the_copy_it_needs():
    late = step(work("up", flops=100, number=1, size=10), work("wait", number=1))
    assert late == pytest.approx(1.0 + 1.0)
    there_and_back = step(
        work("down", number=1, size=20), work("up", number=2, size=20, after=1), work("wait", number=2)
    )
    assert there_and_back == pytest.approx(2.0 + 2.0)


def test_a_host_that_reads_a_number_queues_nothing_until_the_card_has_it():
    slow = replace(SPEEDS, launch=1.0)
    first, rest = (
        [work(kind, flops=300) for kind in ("meet", "end")],
        [work("wait", flops=1, number=1), Entry("end", 0, 0, 0)],
    )
    waits, runs_ahead = (timeline.seconds([each, *rest], slow) for each in first)
    assert runs_ahead == pytest.approx(3.01)
    assert waits == pytest.approx(3.0 + 1.0)  # the second operator is launched when the first one's result is there


def test_both_ways_at_once_share_the_bus():
    both = step(
        work("down", number=1, size=20), work("up", number=2, size=20), work("wait", number=1), work("wait", number=2)
    )
    assert both == pytest.approx(20 / (10 * 0.5))


def test_what_cards_tell_each_other_hides_behind_work_and_shares_the_bus_only_through_the_host():
    message = (work("link", number=1, size=20), work("wait", flops=300, number=1))
    joined = replace(SPEEDS, link=10.0, message=0.5)
    assert timeline.seconds([*message, Entry("end", 0, 0, 0)], joined) == pytest.approx(3.0)
    assert timeline.seconds([*message[:1], work("wait", number=1)], joined) == pytest.approx(2.5)
    beside = (
        work("up", number=1, size=20),
        work("link", number=2, size=20),
        work("wait", number=1),
        work("wait", number=2),
    )
    assert timeline.seconds(beside, joined) == pytest.approx(2.5)
    assert timeline.seconds(beside, replace(joined, through_host=True)) == pytest.approx(2.0 + 2.5)
    assert timeline.link_bytes(beside) == 20


def test_a_card_that_is_faster_than_its_host_waits_for_it():
    slow = replace(SPEEDS, launch=0.5)
    assert timeline.seconds([Entry("end", 100, 0, 10)], slow) == pytest.approx(5.0)
    assert timeline.seconds([Entry("end", 1000, 0, 10)], slow) == pytest.approx(10.0, rel=0.06)


CARD = Speeds(flops=2e9, bandwidth=1e9, bus=2e7, duplex=1.0, launch=0.0)


def played(policy: Policy, speeds: Speeds = CARD) -> float:
    engine, tracker = Engine(Model().to("meta").units(), policy, "meta"), Tracker("meta", host.holds)
    values, target = ({name: v.to("meta") for name, v in batch(0)[0].items()}, batch(0)[1].to("meta"))
    with engine.traffic.followed(tracker), tracker:
        for _ in range(2):
            tracker.restart()
            engine.step([values], lambda out, i: (out.float() - target).pow(2).mean(), 1e-3)
    return timeline.seconds(tracker.watched().timeline, speeds)


@pytest.mark.parametrize("stream", ["state", "all"])
def test_updates_that_wait_for_forward_hide_what_a_second_pass_would_show(stream, monkeypatch):
    policy = replace(LOW, stream=stream, gradients="ram")
    computing = played(policy, replace(CARD, bus=1e15))
    hidden = played(policy) - computing
    monkeypatch.setattr(Policy, "deferred", False)
    shown = played(policy) - computing
    assert shown > 1.2 * hidden


def test_what_the_engine_tells_of_its_copies_adds_up():
    engine, tracker = (
        Engine(Model().to("meta").units(), replace(LOW, stream="all", gradients="ram"), "meta"),
        Tracker("meta", host.holds),
    )
    values, target = ({name: v.to("meta") for name, v in batch(0)[0].items()}, batch(0)[1].to("meta"))
    tracker.keep([block.home for holding in engine.holdings for block in (holding.weights, holding.state)], "weights")
    with engine.traffic.followed(tracker), tracker:
        engine.step([values], lambda out, i: (out.float() - target).pow(2).mean(), 1e-3)
    seen = tracker.watched()
    for way, total in (("up", seen.sent_up), ("down", seen.sent_down)):
        assert sum(entry.size for entry in seen.timeline if entry.kind == way) == total > 0
    assert sum(entry.flops for entry in seen.timeline) == seen.flops
    assert sum(entry.operators for entry in seen.timeline) == seen.operators
