"""Updates that do not wait for the norm: the same numbers as those that do, whether a step is clipped or not, and whoever looks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policies import LOW
from small_unet import Model, batch, batches, end_alike, same, stored, take_step

from trainer import memory
from trainer.errors import ConfigError
from trainer.policy import Policy
from trainer.step.engine import Engine
from trainer.step.ranks import settling

WAYS = {
    "state streamed": Policy(stream="state", gradients="ram"),
    "state streamed, three units stay": Policy(stream="state", gradients="ram", resident_units=3),
    "low bits, state streamed": replace(LOW, stream="state", gradients="ram", checkpointing="off"),
    "low bits, everything streamed": replace(LOW, stream="all", boundaries="ram", gradients="ram"),
    "low bits, everything streamed, two units stay": replace(LOW, stream="all", gradients="ram", resident_units=2),
    "random rounding": replace(LOW, weights="16bit_sr", moments="4bit", stream="state", gradients="ram"),
    "fp16": replace(LOW, compute=torch.float16, stream="state", gradients="ram"),
    "fp16, nothing clipped": replace(LOW, compute=torch.float16, stream="all", gradients="ram", max_grad_norm=0.0),
}
NORMS = {"never": 1e9, "always": 1e-3, "now and then": None}  # None: half of the steps are above it


def early(policy: Policy, model: Model | None = None, text: bool = False, reach: int = 0) -> Engine:
    policy = replace(policy, early_updates=True, reach_mb=reach)
    memory.check(policy)
    return Engine((model or Model()).units(text), policy, "cpu")


def plain(policy: Policy, model: Model | None = None, text: bool = False) -> Engine:
    """Each update in its own step, behind the norm."""
    return Engine((model or Model()).units(text), replace(policy, gradients="card"), "cpu")


def between(policy: Policy, count: int = 1) -> float:
    """A norm that some of the steps exceed."""
    engine = plain(policy)
    norms = sorted(float(take_step(engine, number, count).grad_norm) for number in range(6))
    return (norms[2] + norms[3]) / 2


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("clipped", NORMS)
@pytest.mark.parametrize("policy", WAYS.values(), ids=WAYS)
def test_early_updates_are_those_behind_the_norm_bit_for_bit(monkeypatch, policy, clipped, count):
    monkeypatch.setattr(settling, "RARELY", 2.0)  # however often a step is made again
    if policy.max_grad_norm:
        policy = replace(policy, max_grad_norm=NORMS[clipped] or between(policy, count))
    ours, theirs = early(policy), plain(policy)
    for number in range(6):
        rate = 1e-2 / (number + 1)
        mine, other = (take_step(engine, number, count, lr=rate) for engine in (ours, theirs))
        assert torch.equal(mine.losses, other.losses) and torch.equal(mine.grad_norm, other.grad_norm)
    assert same(stored(ours), stored(theirs))
    if policy.max_grad_norm:
        again = ours.settling.again
        assert {"never": again == 0, "always": again == 6, "now and then": 0 < again < 6}[clipped]


def test_where_steps_are_clipped_often_updates_wait_and_are_early_again_when_they_are_not():
    policy = replace(WAYS["state streamed"], max_grad_norm=1e-3)
    ours, theirs = early(policy), plain(policy)
    hurried = []
    for number in range(40):
        calm = 12 < number < 30
        for engine in (ours, theirs):
            limit = replace(engine.policy, max_grad_norm=1e9 if calm else 1e-3)
            engine.policy = engine.updates.policy = limit
        for engine in (ours, theirs):
            take_step(engine, number)
        hurried.append(not ours.waiting.rates)
    assert same(stored(ours), stored(theirs))
    assert ours.settling.again <= 5, "steps that are clipped every time are made twice every time"
    assert not any(hurried[:12]) and all(hurried[28:30]) and sum(hurried) > 8


@pytest.mark.parametrize("limit", [1e9, 1e-3], ids=["kept", "taken back"])
def test_a_step_that_is_made_again_draws_the_same_random_numbers(limit):
    policy = replace(WAYS["low bits, everything streamed"], max_grad_norm=limit)
    ends = []
    for make in (early, plain):
        engine = make(policy, Model(dropout=0.3))
        torch.manual_seed(7)
        for number in range(3):
            take_step(engine, number)
        ends.append((stored(engine), torch.rand(3)))  # and whoever draws next
    assert same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


STRANGER = {name: p for unit in Model(seed=4).units() for name, p in unit.module.named_parameters()}
LOOKS = {
    "state_dict": lambda engine: engine.state_dict(),
    "master": lambda engine: dict(engine.master())["unet.up.conv1.weight"],
    "sampling": lambda engine: engine.forward(batch(7)[0]),
    "loading weights": lambda engine: engine.load_master({name: p.detach() for name, p in STRANGER.items()}),
    "a step that changes nothing": lambda engine: take_step(engine, 9, update=False) and None,
}


@pytest.mark.parametrize("clipped", NORMS)
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("name", ["low bits, state streamed", "low bits, everything streamed, two units stay"])
def test_whoever_looks_sees_every_update(name, look, clipped):
    policy = replace(WAYS[name], max_grad_norm=NORMS[clipped] or between(WAYS[name]))
    ours, theirs = early(policy), plain(policy)
    for number in range(4):
        for engine in (ours, theirs):
            take_step(engine, number)
        seen = [look(engine) for engine in (ours, theirs)]
        if isinstance(seen[0], torch.Tensor):
            assert torch.equal(*seen)
    assert same(stored(ours), stored(theirs))


@pytest.mark.parametrize("clipped", NORMS)
@pytest.mark.parametrize("policy", WAYS.values(), ids=WAYS)
def test_a_run_that_is_killed_resumes_exactly(policy, clipped):
    if policy.max_grad_norm:
        policy = replace(policy, max_grad_norm=NORMS[clipped] or between(policy))
    whole, killed = early(policy), early(policy)
    for number in range(5):
        take_step(whole, number)
    for number in range(3):
        take_step(killed, number)
    saved = stored(killed)
    resumed = early(policy, Model(seed=9))
    resumed.load_state_dict(saved)
    for number in range(3, 5):
        take_step(resumed, number)
    assert same(stored(resumed), stored(whole))


def test_an_overflow_takes_a_step_back_and_skips_it():
    policy = WAYS["fp16"]
    ours, theirs = early(policy), plain(policy)
    for engine in (ours, theirs):
        engine.updates.scale.factor.fill_(2.0**40)
        for number in range(30):
            take_step(engine, number)
    assert ours.settling.again > 0
    assert same(stored(ours), stored(theirs))
    assert float(ours.updates.scale.factor) < 2.0**40


@pytest.mark.parametrize("given_up", [True, False], ids=["given up", "looked at"])
@pytest.mark.parametrize("name", ["low bits, state streamed", "low bits, everything streamed"])
def test_a_step_that_breaks_off_leaves_what_was_before_it(name, given_up):
    engine = early(replace(WAYS[name], max_grad_norm=1e9), text=True)
    take_step(engine, 0, text=True)
    before = stored(engine)
    values, target = batches(1, 1, text=True)[0]
    hook = engine.holdings[2].trained[0].parameter.register_hook(lambda grad: 1 / 0)  # backward is half way there
    with pytest.raises(ZeroDivisionError):
        engine.step([values], lambda prediction, i: (prediction.float() - target).pow(2).mean(), 1e-2)
    assert engine.settling.made, "no update was made before it broke off"
    hook.remove()
    if given_up:
        engine.abandon()
    assert same(stored(engine), before | {"engine.taken": stored(engine)["engine.taken"]})


def test_parts_that_stop_learning_are_updated_no_more():
    policy = replace(WAYS["low bits, everything streamed"], max_grad_norm=1e9)
    rates = [{"unet": 1e-2, "text": 1e-2}, {"unet": 1e-2}, {"text": 1e-2}]
    assert end_alike(early(policy, text=True), plain(policy, text=True), [{"lr": lr, "text": True} for lr in rates])


@pytest.mark.parametrize("reach", [0, 1, 64])
def test_how_far_a_step_reaches_ahead_changes_no_number(reach):
    policy = replace(WAYS["low bits, everything streamed"], max_grad_norm=1e9)
    assert end_alike(early(policy, reach=reach), plain(policy), [{}] * 3)


def test_nothing_of_a_gradient_is_kept_where_nothing_is_clipped():
    engine = early(replace(WAYS["low bits, state streamed"], max_grad_norm=1e9))
    take_step(engine, 0)
    assert not engine.waiting.rates and not engine.waiting.shelf


def test_gradients_of_a_clipped_step_wait_in_the_bytes_that_early_updates_have():
    policy = replace(WAYS["low bits, state streamed"], max_grad_norm=1e9)
    calm, engine = early(policy), early(replace(policy, max_grad_norm=1e-3))
    for number in range(2):
        for each in (calm, engine):
            take_step(each, number)
    assert engine.settling.again and engine.waiting.shelf
    assert engine.bytes["host"] == calm.bytes["host"]


REFUSED = {
    "nothing is streamed": {"stream": "off"},
    "gradients stay on the card": {"gradients": "card"},
    "the previous norm": {"gradients": "card", "clipping": "previous"},
    "nothing is clipped": {"gradients": "card", "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_where_nothing_would_wait_early_updates_are_refused(changes):
    policy = replace(WAYS["state streamed"], early_updates=True, **changes)
    with pytest.raises(ConfigError, match="early_updates"):
        memory.check(policy)


def test_only_units_with_a_home_in_host_memory_are_early():
    engine = early(replace(WAYS["state streamed, three units stay"], max_grad_norm=1e9))
    take_step(engine, 0)
    waiting = {k for k, holding in enumerate(engine.holdings) if holding.state.resident}
    assert len(waiting) == 3 and set(engine.waiting.rates) == waiting
