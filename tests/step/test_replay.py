"""A recorded step equals an eager one to the bit, whatever changes between steps: batches, rates, shapes, who learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policies import HALF, LOW
from small_unet import Model, batch
from tape import Tape

from trainer import memory
from trainer.errors import ConfigError
from trainer.memory import cuda_graphs
from trainer.objective.loss import Given, Objective
from trainer.objective.noise import DDPM
from trainer.step.engine import Engine, Policy
from trainer.step.replay import Replay

EIGHT = Policy(moments="8bit")
KEPT = {
    "fp32 weights": EIGHT,
    "low bits": replace(LOW, checkpointing="off"),
    "blocks": LOW,
    "selective": replace(LOW, checkpointing="selective"),
    "previous norm": replace(LOW, clipping="previous"),
    "no clipping": replace(LOW, max_grad_norm=0.0),
    "fp16": replace(HALF, gradients="card"),
}
OBJECTIVE = Objective(DDPM(torch.linspace(0.999, 0.001, 1000, dtype=torch.float64)))


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Recording", Tape)
    monkeypatch.setattr(cuda_graphs, "pool", lambda device: "the pool")


def engine(policy: Policy, replays: bool, text: bool = False) -> Engine:
    made = Engine(Model().units(text), policy, "cpu")
    if replays:
        made.replay = Replay(made.updates, made.abandon)
    return made


def step(engine: Engine, number: int, lr, rows: int = 2, count: int = 1, text: bool = False, **options):
    data = [batch(10 * number + k, rows, text) for k in range(count)]
    given = [Given(target, torch.rand(rows), None, rows // 2, None) for _, target in data]
    return engine.step([values for values, _ in data], OBJECTIVE.of_step(given, count), lr, **options)


def both(policy: Policy, steps, text: bool = False) -> Engine:
    """Take `steps` eagerly and recorded; they must agree in every bit. Returns the engine that replays."""
    found = []
    for replays in (False, True):
        torch.manual_seed(0)
        made = engine(policy, replays, text)
        results = [step(made, number, text=text, **each) for number, each in enumerate(steps)]
        found.append((results, {name: value.clone() for name, value in made.state_dict().items()}))
    (plain, state), (replayed, again) = found
    for one, other in zip(plain, replayed, strict=True):
        assert torch.equal(one.losses, other.losses) and torch.equal(one.grad_norm, other.grad_norm)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    return made


@pytest.mark.parametrize("policy", KEPT.values(), ids=KEPT.keys())
def test_steps_with_rates_of_their_own_are_replayed_bit_for_bit(policy):
    made = both(policy, [{"lr": 1e-3 * (number + 1)} for number in range(5)])
    assert len(made.replay.recordings) == 1
    assert int(made.state_dict()["engine.taken"]) == 5


def test_micro_batches_add_up_in_a_recording():
    both(LOW, [{"lr": 1e-3, "count": 2} for _ in range(4)])


def test_every_shape_has_a_recording_and_runs_eagerly_first():
    made = both(LOW, [{"lr": 1e-3, "rows": rows} for rows in (2, 4, 2, 4, 2, 4)])
    assert len(made.replay.recordings) == 2


def test_an_eager_step_has_the_memory_of_recordings_given_back_first():
    """Else a step would take the card twice."""
    made = engine(LOW, True)
    for rows in (2, 2, 2):
        step(made, 0, 1e-3, rows)
    assert len(made.replay.recordings) == 1
    step(made, 3, 1e-3, 4)
    assert not made.replay.recordings and made.replay.pool is None


def test_a_text_encoder_that_stops_learning_is_another_step():
    rates = [{"unet": 1e-3, "text": 1e-4}] * 3 + [{"unet": 1e-3, "text": 0.0}] * 3
    made = both(LOW, [{"lr": each} for each in rates], text=True)
    assert len(made.replay.recordings) == 1  # the other's memory went to the eager step that came between


def test_a_step_at_rate_zero_counts_for_nothing():
    """Adam's correction begins with the first step that learns."""
    made = both(LOW, [{"lr": rate} for rate in (0.0, 0.0, 0.0, 1e-3, 1e-3, 1e-3)])
    assert int(made.state_dict()["engine.taken"]) == 3


def test_a_step_that_teaches_nothing_runs_eagerly_and_disturbs_nothing():
    both(LOW, [{"lr": 1e-3}, {"lr": 1e-3}, {"lr": 1e-3, "update": False}, {"lr": 1e-3}])


def test_a_loss_that_is_only_a_function_runs_eagerly():
    made = engine(LOW, True)
    for number in range(3):
        values, target = batch(number)
        made.step([values], lambda out, _, target=target: (out.float() - target).square().mean(), 1e-3)
    assert not made.replay.recordings


def test_whoever_needs_the_card_between_steps_gets_the_recordings_memory():
    made = engine(LOW, True)
    for number in range(3):
        step(made, number, 1e-3)
    assert made.replay.recordings
    with made.parked():
        assert not made.replay.recordings
    step(made, 3, 1e-3)
    assert len(made.replay.recordings) == 1  # the shape has been seen: no eager step again


def test_a_recording_that_fails_leaves_eager_training_and_says_why(monkeypatch):
    class Full:
        def __init__(self, run, inputs, pool):
            run(inputs)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    expected, made = engine(LOW, False), engine(LOW, True)
    for number in range(2):
        step(expected, number, 1e-3)
    monkeypatch.setattr(cuda_graphs, "Recording", Full)
    step(made, 0, 1e-3)
    # what was recorded did not run on a card: here it has, so only that training goes on is held
    assert step(made, 1, 1e-3).losses.isfinite().all()
    assert "out of memory" in made.replay.news() and made.replay.news() == "" and not made.replay.recordings
    assert step(made, 2, 1e-3).losses.isfinite().all()
    assert made.waiting.rates == {} and all(holding.gradients is None for holding in made.holdings)


@pytest.mark.parametrize(
    "more", [{"stream": "state"}, {"checkpointing": "blocks", "boundaries": "ram"}, {"gradients": "ram"}]
)
def test_what_leaves_the_card_is_refused_with_graphs(more):
    with pytest.raises(ConfigError, match="cuda_graphs"):
        memory.check(Policy(cuda_graphs=True, **more))


def test_an_optimizer_that_counts_on_the_host_is_refused_with_graphs():
    with pytest.raises(ConfigError, match="counts its steps"):
        memory.check(Policy(cuda_graphs=True, optimizer="torch_adamw"))


def test_where_there_is_no_card_nothing_is_recorded():
    policy = replace(LOW, cuda_graphs=True)
    assert Engine(Model().units(), policy, "cpu").replay is None
