"""Training that counts minutes ends when they are up, whatever was used before it was stopped."""

from types import SimpleNamespace

import pytest
import torch
from trainer.benchmarks.demo import pace
from trainer.benchmarks.demo.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_progress_is_the_share_of_the_minutes_and_never_more_than_all(clock):
    made = Pace(minutes=2, base_lr=1.0, started=1000.0)
    clock[0] += 30
    assert made.progress == 0.25
    clock[0] += 3600
    assert made.progress == 1.0 and made.lr == 0.0


def test_seconds_of_an_earlier_run_count(clock):
    assert Pace(minutes=1, base_lr=1.0, used_before=45.0, started=1000.0).progress == 0.75


def test_the_rate_climbs_while_it_warms_up_and_falls_afterwards(clock):
    made, rates = Pace(minutes=100, base_lr=1.0, started=1000.0), []
    for _ in range(100):
        rates.append(made.lr)
        clock[0] += 60
    top = rates.index(max(rates))
    assert 1 <= top <= 3 and 0.9 < rates[top] <= 1.0
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_rate_reaches_every_group():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 3.0}], lr=1.0)
    pace.set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
