"""The search for a better way: what is run where, what is not run again, and the distance that decides."""

import json
from pathlib import Path

import pytest
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import search
from trainer.benchmarks.suites.quality import Subject
from trainer.benchmarks.suites.search import Rung

KNOWN = [Subject(name, Path(name), "cat", "sks", Path("other")) for name in ("a", "b")]
MET = {"fidelity": 0.7, "class_kept": 1.0, "unrelated_drift": 0.2, "prompt": 0.7}


def row(way: str, subject: str = "a", seed: int = 0, **changed: float) -> dict:
    return {"way": way, "subject": subject, "seed": seed} | MET | changed


def test_a_way_to_train_is_run_and_measured():
    base, found = search.suite(Options(tiny=True))
    assert base["way"] == search.BASE and base["unrelated_drift"] < 1e-5
    assert found["way"] == "no prior" and 0 <= search.distance(search.means([found])) <= 2


def test_a_text_encoders_part_in_drift_is_measured_by_restoring_it():
    asked = ("ways=class images 0.3, slow text, anchor 0.005",)
    _, found = search.suite(Options(tiny=True, words=asked))
    assert found["way"].startswith("class images") and found["unrelated_drift_text_restored"] >= 0


def test_the_distance_is_zero_where_every_goal_is_met_and_grows_with_what_is_missing():
    assert search.distance(search.means([row("x")])) == 0
    near, far = (search.distance(search.means([row("x", unrelated_drift=value)])) for value in (0.33, 0.5))
    assert 0 < near < far <= 1
    assert search.distance(search.means([row("x", fidelity=-1.0, class_kept=0.0)])) == 2**0.5


def test_the_better_ways_go_on_and_those_that_everybody_has_stay():
    stays = search.ALWAYS[0]
    done = [row(stays, class_kept=0.0), row("bad", fidelity=0.0), row("good"), row("fair", prompt=0.5)]
    assert search.going_on(done, [stays, "bad", "good", "fair"], [Rung(1, 1, 2)], KNOWN) == ["good", "fair", stays]


@pytest.mark.parametrize(("halving", "goes_on"), [("yes", {"good"}), ("no", {"good", "bad"})])
def test_ways_that_lose_run_to_the_end_where_nothing_is_halved(monkeypatch, tmp_path, halving, goes_on):
    class Measures:
        def __init__(self, *how):
            pass

        def before(self, subject):
            return []

        def one(self, subject, flags, seed, run, before):
            return MET | {"fidelity": float(flags == ["good"])}, []

    monkeypatch.setattr(search, "Protocol", Measures)
    monkeypatch.setattr(search, "RESULTS", tmp_path)
    monkeypatch.setattr(search, "strip", lambda *what: None)
    monkeypatch.setattr(search, "scores", lambda *what: MET)
    monkeypatch.setattr(search, "RUNGS", (Rung(1, 1, 1), Rung(1, 2, 1)))
    monkeypatch.setattr(search, "WAYS", {"good": ["good"], "bad": ["bad"]})
    found = list(search.suite(Options(words=(f"halving={halving}",))))
    assert {each["way"] for each in found if each["seed"] == 1} == goes_on


def test_what_was_measured_is_not_run_again():
    done = [row("good"), row("fair")]
    left = [(s.name, seed, way) for s, seed, way in search.due(done, ["good", "fair"], Rung(2, 1, 1), KNOWN)]
    assert left == [("b", 0, "good"), ("b", 0, "fair")]


def test_rows_of_an_earlier_search_are_read(tmp_path):
    file = tmp_path / "search.jsonl"
    assert search.kept(file) == []
    file.write_text(json.dumps(row("good")) + "\n")
    assert search.kept(file) == [row("good")]


def test_a_summary_has_means_and_intervals_with_the_nearest_way_first():
    first, second = search.summary([row("bad", fidelity=0.1), row("good"), row("good", seed=1, prompt=0.9)])
    assert (first["way"], first["runs"], second["way"]) == ("good", 2, "bad")
    assert first["prompt"] == 0.8 and abs(first["prompt_ci"] - 12.71 * 0.1) < 1e-9 and "prompt_ci" not in second


def test_the_front_has_what_no_other_way_beats_in_both():
    runs = [
        row("far", fidelity=0.9, unrelated_drift=0.9),
        row("near"),
        row("beaten", fidelity=0.6, unrelated_drift=0.4),
    ]
    assert [each["way"] for each in search.front(search.summary(runs))] == ["near", "far"]
