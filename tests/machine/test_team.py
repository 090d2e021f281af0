"""A team of one says and waits for nothing; what two tell each other is in tests/step/test_two_ranks.py."""

import pickle
import subprocess
import sys

import pytest
import torch

from trainer.errors import ConfigError
from trainer.machine import launcher
from trainer.machine.team import ALONE, Team


def test_a_team_of_one_answers_with_what_it_was_told():
    tensor = torch.ones(3)
    ALONE.sum(tensor)()
    assert torch.equal(tensor, torch.ones(3))
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.tell("word") == "word" and ALONE.gather(3) == [3]
    assert ALONE.leads and ALONE.behind == 0


def test_a_team_of_one_goes_through_events_as_they_are():
    def stage():
        yield 1
        return "result"

    def both(events):
        return (yield from events)

    def drain(events):
        seen = []
        while True:
            try:
                seen.append(next(events))
            except StopIteration as stop:
                return seen, stop.value

    assert drain(both(ALONE.in_turn(stage()))) == ([1], "result")
    assert drain(both(ALONE.first(stage(), print))) == ([1], None)


def test_gradients_of_several_travel_while_the_next_unit_computes():
    assert Team(0, 2).behind == Team(1, 8).behind == 1
    assert not Team(1, 2).leads


def test_a_run_of_one_process_sets_up_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launcher.expected() == 1 and launcher.rank() == 0
    code = "import sys, trainer.machine.team; print('accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_one_finds_out_all_are_told_and_what_a_person_can_mend_too():
    def missing():
        raise ConfigError("no checkpoint", "name another")

    def asked_twice():
        raise AssertionError("only the first looks")

    said = []

    class Leads(Team):
        def tell(self, value):
            said.append(pickle.loads(pickle.dumps(value)))
            return value

    class Follows(Team):
        def tell(self, value):
            assert value is None
            return said.pop()

    assert ALONE.told(lambda: 3) == 3
    assert Leads(0, 2).told(lambda: 4) == 4 and Follows(1, 2).told(asked_twice) == 4
    with pytest.raises(ConfigError):
        Leads(0, 2).told(missing)
    with pytest.raises(ConfigError, match=r"no checkpoint\n  fix: name another"):
        Follows(1, 2).told(asked_twice)
