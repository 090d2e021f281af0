"""Which units are on their way at whose turn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from policies import LOW
from small_unet import Model, take_step

from trainer.step.ahead import Ahead
from trainer.step.engine import Engine


class Unit:
    """As much of a holding as is brought."""

    def __init__(self, size: int):
        self.size, self.there = size, False

    def away(self, state: bool) -> int:
        return self.size

    def bring(self, state: bool = False) -> None:
        self.there = True


def walk(sizes: list[int]) -> list[list[int]]:
    """Who is there, or on the way, at each turn; a unit leaves when its turn is over."""
    units = [Unit(size) for size in sizes]
    ahead, seen = Ahead(range(len(sizes)), units), []
    for at, unit in enumerate(units):
        ahead.turn(at)
        seen.append([k for k, other in enumerate(units) if other.there])
        unit.there = False
    return seen


def test_units_of_one_size_are_brought_one_ahead():
    assert walk([5, 5, 5, 5]) == [[0, 1], [1, 2], [2, 3], [3]]


def test_small_units_make_room_for_more_of_those_behind_them():
    assert walk([1, 1, 1, 6, 6, 1, 1]) == [[0, 1, 2, 3], [1, 2, 3], [2, 3], [3, 4], [4, 5, 6], [5, 6], [6]]


def test_never_more_is_early_than_the_largest_two_neighbours_take():
    sizes = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    room = max(a + b for a, b in itertools.pairwise(sizes))
    assert all(sum(sizes[k] for k in there) <= room for there in walk(sizes))


@pytest.mark.parametrize("stream", ["state", "all"])
def test_what_waits_for_its_update_counts_with_state_and_gradients(stream):
    engine = Engine(Model().units(), replace(LOW, stream=stream, gradients="ram"), "cpu")
    plain = Ahead(range(9), engine.holdings, engine.waiting).room
    take_step(engine, 0)
    k = max(range(9), key=lambda k: engine.holdings[k].n)
    state, grads = engine.holdings[k].state.home.nbytes, engine.waiting.shelf[k].nbytes
    assert Ahead(range(9), engine.holdings, engine.waiting).room >= plain + state + grads
    assert plain == 0 if stream == "state" else plain > 0
