"""Optimizers other than ours: stepped unit by unit, equal to themselves over the whole model, resumable, simulated."""

from __future__ import annotations

import pytest
import torch
from small_unet import Model, batches, take_step, train, train_plainly

from trainer.errors import ConfigError
from trainer.step import optim
from trainer.step.engine import Engine, Policy

THEIRS = ["torch_adamw", "bnb_adamw8bit", "adafactor", "prodigy"]


def skip_where_missing(name: str) -> None:
    pytest.importorskip(optim.PACKAGES.get(name, "torch"))


def test_torch_adamw_unit_by_unit_equals_torch_adamw_over_the_whole_model():
    losses, weights, _ = train(Policy(optimizer="torch_adamw"), steps=3, count=2)
    expected_losses, expected_weights, _ = train_plainly(steps=3, count=2, fused=False)
    assert torch.equal(losses, expected_losses)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


@pytest.mark.parametrize("name", ["adafactor", "prodigy"])
def test_steps_inside_the_engine_equal_steps_over_the_whole_model(name):
    skip_where_missing(name)
    lr = 1.0 if name == "prodigy" else 1e-3
    policy = Policy(optimizer=name, max_grad_norm=0.0)
    weights = train(policy, steps=3, lr=lr)[1]
    model = Model()
    named = {n: p for unit in model.units() for n, p in unit.module.named_parameters()}
    optimizer = optim.make(name, [{"params": list(named.values()), "lr": lr}], policy.hyper)
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        for values, target in batches(step, 1):
            (model(values) - target).pow(2).mean().backward()
        optimizer.step()
    start = dict(Engine(Model().units(), Policy(), "cpu").master())
    for n in named:
        assert torch.allclose(weights[n], named[n].detach(), rtol=1e-5, atol=1e-7), n
    assert sum(not torch.equal(weights[n], start[n]) for n in named) > len(named) // 2


@pytest.mark.parametrize("name", THEIRS)
def test_what_an_optimizer_changes_is_what_the_engine_holds_in_every_memory_format(name):
    """Channels last is the default on a card."""
    skip_where_missing(name)
    lr = 1.0 if name == "prodigy" else 1e-3
    start = dict(Engine(Model().units(), Policy(), "cpu").master())
    model = Model()
    _, weights, engine = train(Policy(optimizer=name, channels_last=True), steps=2, lr=lr, model=model)
    plain = train(Policy(optimizer=name), steps=2, lr=lr)[1]
    held = {n: p.detach() for unit in model.units() for n, p in unit.module.named_parameters()}
    for n, value in engine.master():
        assert torch.equal(value, held[n]), n
        assert torch.equal(value, start[n]) == torch.equal(plain[n], start[n]), n
    moved, expected = (torch.cat([(w[n] - start[n]).flatten() for n in start]) for w in (weights, plain))
    assert (moved - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("name", THEIRS)
def test_every_optimizer_resumes_exactly(name):
    skip_where_missing(name)
    policy, lr = Policy(optimizer=name), 1.0 if name == "prodigy" else 1e-3
    _, weights, _ = train(policy, steps=4, lr=lr)
    saved = {key: tensor.clone() for key, tensor in train(policy, steps=2, lr=lr)[2].state_dict().items()}
    resumed = Engine(Model(seed=4).units(), policy, "cpu")
    resumed.load_state_dict(saved)
    for step in (2, 3):
        take_step(resumed, step, lr=lr)
    assert all(torch.equal(value, weights[key]) for key, value in resumed.master())


def test_prodigy_refuses_different_rates_and_names_the_way_out():
    skip_where_missing("prodigy")
    engine = Engine(Model().units(text=True), Policy(optimizer="prodigy"), "cpu")
    with pytest.raises(ConfigError, match="--text_encoder_lr"):
        take_step(engine, 0, lr={"unet": 1.0, "text": 0.5}, text=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"compute": torch.float16},
        {"weights": "24bit"},
        {"moments": "8bit"},
        {"stream": "state"},
        {"gradients": "ram"},
    ],
    ids=str,
)
def test_what_their_state_cannot_do_is_refused_before_training(settings):
    with pytest.raises(ConfigError) as caught:
        Engine(Model().units(), Policy(optimizer="adafactor", **settings), "cpu")
    assert "adafactor" in caught.value.what and "--optimizer adamw" in caught.value.fix


@pytest.mark.parametrize("name", [*THEIRS, "bnb_paged_adamw8bit"])
def test_a_simulation_allocates_what_the_optimizer_would(name):
    engine = Engine(Model().to("meta").units(), Policy(optimizer=name), "meta")
    values, target = batches(0, 1)[0]
    values, target = {n: v.to("meta") for n, v in values.items()}, target.to("meta")
    engine.step([values], lambda prediction, i: (prediction - target).pow(2).mean(), 1.0)
    state = [
        t
        for o in engine.updates.optimizers.values()
        for s in o.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor)
    ]
    count = sum(p.numel() for unit in engine.units for p in unit.module.parameters())
    held = sum(t.numel() * t.element_size() for t in state)
    assert 0 < held <= 17 * count
    if name == "torch_adamw":
        assert held >= 8 * count
