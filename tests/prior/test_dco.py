"""DCO with cached losses: the base model's numbers on rows that come again, and a loss that fades where enough is learned."""

import pytest
import torch
from photos import finish, settings
from small_data import small_data

from trainer.data.batches import Batches, ClassRows
from trainer.events import PhaseStarted
from trainer.objective.loss import Objective
from trainer.prior import dco, turn
from trainer.step.engine import Engine, Policy


@pytest.fixture
def given(tmp_path):
    parts, data, _ = small_data()
    config = settings(tmp_path)
    config.train.max_train_steps, config.prior.temperature = 20, 0.01
    objective = Objective.of(config, parts.noise())
    engine = Engine(parts.family.units(parts), Policy(), "cpu")
    return parts, data, config, objective, engine


def ready(given, tmp_path, rows=4):
    parts, data, config, objective, engine = given
    decks = dco.decks(data, objective, config)
    return [finish(dco.known(deck, engine, parts.digest, tmp_path, rows))[1] for deck in decks]


def test_a_cached_loss_is_what_the_untouched_model_has_on_that_row(given, tmp_path):
    parts, _, _, objective, _ = given
    for deck in ready(given, tmp_path):
        row = deck.row(0, 3)
        with torch.no_grad():
            prediction = parts.family.denoise(parts, row.values)
        expected = objective.errors(prediction, row.target, row.weights, row.mask)
        assert torch.allclose(row.reference, expected, rtol=1e-4)
    assert not any(torch.equal(deck.losses[0, 0], deck.losses[0, 1]) for deck in ready(given, tmp_path))


def test_the_second_of_two_waits_and_has_the_losses_that_the_first_measured(given, tmp_path, monkeypatch):
    monkeypatch.setattr(turn, "POLL_SECONDS", 0)
    parts, data, config, objective, engine = given
    deck = dco.decks(data, objective, config)[0]
    first, second = (dco.known(deck, engine, parts.digest, tmp_path, rows) for rows in (1, 4))
    next(first)
    waiting = [next(second) for _ in range(9)]
    assert "waits for it" in waiting[0].text
    measured = finish(first)[1]
    events, found = finish(second)
    assert torch.equal(found.losses, measured.losses) and any("are known" in str(event) for event in events)


def test_the_first_step_has_the_gradient_of_the_plain_loss(given, tmp_path):
    _, data, _, objective, engine = given
    photos, classes = ready(given, tmp_path)
    batches = Batches(data, objective, ClassRows(data, objective, classes), batch_size=2, accumulation=1, seed=0)
    batches.draws = photos
    micro = batches.step()
    assert micro[0].reference.shape == (4,) and micro[0].instances == 2
    prediction = engine.forward(micro[0].values).requires_grad_()
    (ours,) = torch.autograd.grad(objective.of_step(micro, 1)(prediction, 0)[0], prediction)
    each = objective.errors(prediction, micro[0].target, micro[0].weights)
    (plain,) = torch.autograd.grad(objective.halves(each, 2)[0], prediction)
    assert torch.allclose(ours, plain, rtol=1e-3, atol=1e-9)


def test_a_row_that_is_known_far_better_than_by_the_base_model_pulls_at_nothing():
    objective, each = Objective(small_data()[0].noise(), temperature=0.01), torch.tensor([0.1, 0.5], requires_grad=True)
    found = objective.consistent(each, torch.tensor([0.5, 0.5]))
    (pull,) = torch.autograd.grad(found.sum(), each)
    assert pull[0] < 1e-6 and pull[1] == pytest.approx(1.0)


def test_a_large_temperature_is_the_plain_loss():
    objective, each = Objective(small_data()[0].noise(), temperature=1e4), torch.tensor([0.1, 0.5], requires_grad=True)
    (pull,) = torch.autograd.grad(objective.consistent(each, torch.tensor([0.9, 0.2])).sum(), each)
    assert torch.allclose(pull, torch.ones(2), atol=1e-3)


def test_losses_are_measured_once(given, tmp_path):
    parts, data, config, objective, engine = given
    first = ready(given, tmp_path)
    events, again = finish(dco.known(dco.decks(data, objective, config)[0], engine, parts.digest, tmp_path))
    assert not any(isinstance(event, PhaseStarted) for event in events)
    assert torch.equal(again.losses, first[0].losses)


def test_rows_follow_the_generator_and_come_again(given, tmp_path):
    _, data, *_ = given
    photos, _ = ready(given, tmp_path)
    views = [data.instance(0, 0)] * 3
    one, two, other = (photos.rows(views, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.values["sample"], two.values["sample"]) and torch.equal(one.reference, two.reference)
    assert not torch.equal(one.values["sample"], other.values["sample"])
    assert {float(loss) for loss in one.reference} <= {float(loss) for loss in photos.losses.flatten()}
