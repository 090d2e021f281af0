"""The data flow of a step over a small UNet: who is visited backward, what is kept, and when a value may go."""

import pytest
import torch
from small_unet import Model

from trainer.policy import Policy
from trainer.step.route import Route, needed

UNITS = Model().units()
NAMES = [unit.name.partition(".")[2] for unit in UNITS]
ALL = [True] * len(UNITS)
BLOCKS = Policy(checkpointing="blocks")


def at(name: str) -> int:
    return NAMES.index(name)


def learns(*names: str) -> list[bool]:
    return [name in names for name in NAMES]


def test_backward_visits_every_unit_from_the_last_to_the_first_where_all_learn():
    assert Route(UNITS, Policy(), ALL).backward == list(range(len(UNITS)))[::-1]


def test_backward_ends_at_the_first_unit_that_learns():
    route = Route(UNITS, Policy(), learns("mid"))
    assert [NAMES[k] for k in route.backward] == ["conv_out", "up", "grow", "mid"]
    assert route.wants[at("mid")] == set() and route.wants[at("up")] == {
        "large"
    }  # nobody before learned of skip or time


def test_a_unit_that_learns_nothing_is_passed_through_where_one_before_it_learns():
    route = Route(UNITS, Policy(), learns("down", "mid"))
    assert at("cross") in route.backward and route.wants[at("cross")] == {"small"}
    assert at("time") not in route.backward and at("conv_in") not in route.backward


def test_the_last_unit_is_visited_even_where_nothing_learns():
    assert Route(UNITS, Policy(), [False] * len(UNITS)).backward == [len(UNITS) - 1]


def test_without_checkpointing_every_graph_but_the_last_is_kept():
    kept = Route(UNITS, Policy(), ALL).kept
    assert kept == [True] * (len(UNITS) - 1) + [False]


@pytest.mark.parametrize("more", [{"stream": "all"}, {"boundaries": "ram"}])
def test_an_empty_graph_is_kept_only_where_inputs_and_weights_stay_on_the_card(more):
    assert all(Route(UNITS, BLOCKS, ALL).kept[:-1])
    assert not any(Route(UNITS, Policy(checkpointing="blocks", **more), ALL).kept)


@pytest.mark.parametrize("policy", [Policy(), BLOCKS, Policy(checkpointing="blocks", boundaries="ram")])
def test_a_value_is_dropped_once_and_never_before_its_last_reader(policy):
    route = Route(UNITS, policy, ALL)
    given = {name for unit in UNITS for name in unit.reads} - {name for unit in UNITS for name in unit.writes}
    gone: list[str] = []
    for k, unit in enumerate(UNITS):
        assert not set(gone) & set(unit.reads), f"{NAMES[k]} reads what is gone"
        gone += route.done_forward[k]
    for k in route.backward:
        if not route.kept[k]:  # it runs again
            assert not set(gone) & set(UNITS[k].reads), f"{NAMES[k]} runs again without its inputs"
        gone += route.done_backward[k]
    written = {name for unit in UNITS[:-1] for name in unit.writes}
    assert len(gone) == len(set(gone)) and set(gone) >= written - {"joined"} and set(gone) <= written | given


def test_what_everybody_reads_never_travels_to_host_memory():
    ram = Policy(checkpointing="blocks", boundaries="ram")
    travellers = Route(UNITS, ram, ALL).travellers
    assert "skip" in travellers and "sample" not in travellers  # given from outside
    assert Route(UNITS, BLOCKS, ALL).travellers == frozenset()


def test_the_next_visit_keeps_what_it_reads_unless_another_micro_batch_comes_first():
    route = Route(UNITS, BLOCKS, ALL)
    assert route.near(at("down"), 1, backward=False) == UNITS[at("shrink")].reads
    assert route.near(at("down"), 1, backward=True) == UNITS[at("conv_in")].reads
    assert route.near(at("down"), 2, backward=False) == ()
    assert route.near(route.backward[-1], 1, backward=True) == ()


def test_only_the_units_between_what_is_there_and_what_is_wanted_run_again():
    assert [NAMES[k] for k in needed(UNITS, {"skip", "time", "text"}, {"middle"})] == ["shrink", "cross", "mid"]
    assert needed(UNITS, {"middle"}, {"middle"}) == []
    with pytest.raises(AssertionError, match="nothing writes"):
        needed(UNITS, set(), {"text"})


def test_a_route_looks_at_names_alone():
    with torch.device("meta"):
        elsewhere = Model().units()
    route = Route(elsewhere, BLOCKS, ALL)
    assert route.backward == Route(UNITS, BLOCKS, ALL).backward
