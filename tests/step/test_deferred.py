"""Updates that wait for their unit's next forward: the same numbers as an update at the end of the step, whoever looks, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policies import LOW
from small_unet import Model, batch, end_alike, same, stored, take_step
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.machine import host
from trainer.policy import Policy
from trainer.step.engine import Engine

WAITING = {
    "gradients in RAM": Policy(gradients="ram"),
    "state streamed, three units stay": Policy(stream="state", gradients="ram", resident_units=3, max_grad_norm=0.02),
    "low bits, everything streamed": replace(LOW, stream="all", boundaries="ram", gradients="ram", max_grad_norm=0.02),
    "fp16": replace(LOW, compute=torch.float16, stream="state", gradients="ram"),
}


def engine_of(policy: Policy, text: bool = False) -> Engine:
    return Engine(Model().units(text), policy, "cpu")


def at_once(policy: Policy) -> Engine:
    """As `policy`, but every update happens in its own step: the order in which plain training makes them."""
    engine = engine_of(replace(policy, gradients="card"))
    assert not engine.policy.deferred
    return engine


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("policy", WAITING.values(), ids=WAITING)
def test_updates_that_wait_are_those_of_their_own_step_bit_for_bit(policy, count):
    late, early = engine_of(policy), at_once(policy)
    for number in range(4):
        rate = 1e-2 / (number + 1)  # each update has its own step's rate, not the one at which it is made
        ours, theirs = (take_step(engine, number, count, lr=rate) for engine in (late, early))
        assert torch.equal(ours.losses, theirs.losses) and torch.equal(ours.grad_norm, theirs.grad_norm)
        assert late.waiting.rates and not early.waiting.rates
    assert same(stored(late), stored(early))
    assert not late.waiting.rates


def parked(engine: Engine) -> None:
    with engine.parked():
        assert not engine.waiting.rates, "the state has left the card, and an update still wants it there"


STRANGER = {name: p for unit in Model(seed=4).units() for name, p in unit.module.named_parameters()}
LOOKS = {
    "state_dict": lambda engine: engine.state_dict(),
    "master": lambda engine: next(engine.master()),
    "sampling": lambda engine: engine.forward(batch(7)[0]),
    "parking": lambda engine: parked(engine),
    "loading weights": lambda engine: engine.load_master({name: p.detach() for name, p in STRANGER.items()}),
    "a step that changes nothing": lambda engine: take_step(engine, 9, update=False),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("name", ["gradients in RAM", "low bits, everything streamed"])
def test_whoever_looks_sees_all_updates(name, look):
    late, early = engine_of(WAITING[name]), at_once(WAITING[name])
    for number in range(3):
        for engine in (late, early):
            take_step(engine, number)
        if number == 1:
            seen = [look(engine) for engine in (late, early)]
            if isinstance(seen[0], torch.Tensor):
                assert torch.equal(*seen)
    assert same(stored(late), stored(early))


@pytest.mark.parametrize("policy", WAITING.values(), ids=WAITING)
def test_a_run_that_is_killed_while_updates_wait_resumes_exactly(policy):
    whole, killed = engine_of(policy), engine_of(policy)
    for number in range(4):
        take_step(whole, number)
    for number in range(2):
        take_step(killed, number)
    saved = stored(killed)  # the checkpoint of step 2
    take_step(killed, 2)
    assert killed.waiting.rates
    del killed  # and with it what waited
    resumed = Engine(Model(seed=9).units(), policy, "cpu")
    resumed.load_state_dict(saved)
    for number in range(2, 4):
        take_step(resumed, number)
    assert same(stored(resumed), stored(whole))


def test_a_model_that_stops_learning_still_gets_its_last_update():
    policy = WAITING["low bits, everything streamed"]
    late, early = engine_of(policy, text=True), engine_of(replace(policy, gradients="card"), text=True)
    rates = [{"unet": 1e-2, "text": 1e-2}, {"unet": 1e-2}, {"unet": 1e-2}]
    assert end_alike(late, early, [{"lr": lr, "text": True} for lr in rates])


def test_a_state_that_is_loaded_is_not_changed_by_what_waited_before():
    engine = engine_of(WAITING["low bits, everything streamed"])
    take_step(engine, 0)
    saved = stored(engine)
    take_step(engine, 1)
    engine.load_state_dict(saved)
    assert same(stored(engine), saved)


class Trips(TorchDispatchMode):
    """Counts the bytes that are copied out of host memory of a given size."""

    def __init__(self, homes: list[torch.Tensor]):
        super().__init__()
        self.homes, self.bytes = {home.untyped_storage()._cdata for home in homes}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[1].untyped_storage()._cdata in self.homes:
            self.bytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


def test_streamed_weights_travel_up_twice_a_step_and_not_three_times():
    """For forward and backward; the update needs no journey of its own."""
    policy, trips = WAITING["low bits, everything streamed"], []
    for engine in (engine_of(policy), at_once(policy)):
        take_step(engine, 0)
        homes = [holding.weights.home for holding in engine.holdings]
        with Trips(homes) as counted:
            take_step(engine, 1)
        trips.append(counted.bytes / sum(home.nbytes for home in homes))
    assert trips[0] < 2.1 < 2.9 < trips[1]


def test_what_a_step_takes_includes_the_updates_that_waited_for_it():
    """A measurement that changes nothing, made twice, is a step in the middle of a run."""
    from trainer.plan.simulate import Tracker

    def peak(**how: bool) -> int:
        engine, tracker = engine_of(WAITING["low bits, everything streamed"]), Tracker("cpu", host.holds)
        take_step(engine, 0, **how)
        with tracker:
            take_step(engine, 1, **how)
        return tracker.watched().card_peak

    assert peak(update=False) == pytest.approx(peak(), rel=0.01)
