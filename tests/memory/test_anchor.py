"""Decay towards the base model: exact against a plain reference, wherever its weights lie, and only there where asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policies import LOW, STREAMED
from small_unet import FusedAdamW, Model, batches, take_step, train

from trainer.policy import AdamHyper
from trainer.step.engine import Engine, Policy

SHARE, RATE = 0.05, 1e-2
HELD = AdamHyper(weight_decay=0.0, anchor=SHARE / RATE)


def held(policy: Policy) -> Policy:
    return replace(policy, hyper=HELD)


def plainly(steps: int, count: int, rates=None) -> dict[str, torch.Tensor]:
    """Autograd over the whole model, clip_grad_norm_, torch's AdamW without decay, and lerp_ towards the start in fp16."""
    model = Model()
    named = {name: p for unit in model.units() for name, p in unit.module.named_parameters()}
    start = {name: p.detach().half().float() for name, p in named.items()}
    optimizer = FusedAdamW(list(named.values()), RATE)
    for step in range(steps):
        rate = RATE if rates is None else rates[step]
        optimizer.optimizer.param_groups[0].update(lr=rate, weight_decay=0.0)
        optimizer.zero_grad()
        for values, target in batches(step, count):
            ((model(values).float() - target).pow(2).mean() / count).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0, foreach=False)
        optimizer.step()
        for (name, p), row in zip(named.items(), optimizer.rows, strict=True):
            p.data.lerp_(start[name], SHARE * rate / RATE)
            row.data[: p.numel()].copy_(p.data.reshape(-1))
    return {name: p.detach() for name, p in named.items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


EXACT = {name: policy for name, policy in STREAMED.items() if policy.weights == "fp32" and policy.max_grad_norm}


@pytest.mark.parametrize("count", [1, 2], ids=["one micro-batch", "two micro-batches"])
@pytest.mark.parametrize("policy", [Policy(), *EXACT.values()], ids=["all kept", *EXACT])
def test_weights_are_those_of_torch_adamw_and_lerp_bit_for_bit(policy, count):
    assert same(train(held(policy), 3, count)[1], plainly(3, count))


def test_the_pull_follows_the_learning_rate():
    engine = Engine(Model().units(), held(Policy()), "cpu")
    for step, rate in enumerate((RATE, RATE / 4)):
        take_step(engine, step, lr=rate)
    assert same(dict(engine.master()), plainly(2, 1, (RATE, RATE / 4)))


def test_whoever_is_held_stays_nearer_to_where_it_began():
    start = {name: p.detach().clone() for unit in Model().units() for name, p in unit.module.named_parameters()}

    def moved(policy: Policy) -> float:
        weights = train(policy, 8)[1]
        return sum(float((weights[name] - start[name]).pow(2).sum()) for name in start) ** 0.5

    assert moved(held(Policy())) < 0.95 * moved(Policy(hyper=AdamHyper(weight_decay=0.0)))


@pytest.mark.parametrize("name", ["all, previous norm", "all, low bits, two units stay"])
def test_streamed_low_bit_weights_are_held_as_resident_ones(name):
    streamed = held(STREAMED[name])
    stays = replace(streamed, stream="off", boundaries="card", gradients="card", resident_units=0)
    assert streamed.anchor_stays is False and stays.anchor_stays is True
    assert same(train(streamed, 3)[1], train(stays, 3)[1])


def test_low_bit_weights_are_pulled_before_they_are_rounded():
    """At a share of one nothing is left of an update but the rounding of 24 bits."""
    policy = replace(LOW, hyper=AdamHyper(weight_decay=0.0, anchor=1 / RATE))
    start = {name: p.detach().clone() for unit in Model().units() for name, p in unit.module.named_parameters()}
    weights = train(policy, 2)[1]
    assert all(torch.allclose(weights[n], start[n].half().float(), rtol=2.0**-14, atol=1e-7) for n in start)


@pytest.mark.parametrize("policy", [Policy(), STREAMED["all"], STREAMED["all, low bits, two units stay"]],
                         ids=["all kept", "streamed", "low bits"])  # fmt: skip
def test_a_resumed_run_ends_with_the_same_bits(policy):
    straight, before, after = (Engine(Model().units(), held(policy), "cpu") for _ in range(3))
    for step in range(4):
        take_step(straight, step)
    for step in range(2):
        take_step(before, step)
    after.load_state_dict({name: tensor.clone() for name, tensor in before.state_dict().items()})
    for step in range(2, 4):
        take_step(after, step)
    ours, theirs = after.state_dict(), straight.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_parked_comes_back():
    plain, parked = (Engine(Model().units(), held(Policy()), "cpu") for _ in range(2))
    take_step(plain, 0)
    with parked.parked():
        assert all(h.anchor is None or h.anchor.live is None for h in parked.holdings)
    take_step(parked, 0)
    assert same(dict(parked.master()), dict(plain.master()))


def test_units_that_visit_leave_nothing_on_the_card():
    engine = train(held(STREAMED["all"]), 2)[2]
    engine.flush()
    assert all(h.anchor.live is None for h in engine.holdings if h.anchor)
    assert "anchor" in engine.bytes and engine.bytes["anchor"] == 0
