"""Programs that take turns: one steps while the others stand still, and what is timed is whole steps of one turn."""

import os
import sys
import time

import psutil
import pytest
from trainer.benchmarks.harness import turns

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows stops no process by a signal")
PLAN = turns.Plan(warm=2, steps=2, turns=2, rounds=3)
# steps that take a while and say so on a line that is drawn over, as progress bars do, with the time of each in a file
STEPS = """
import sys, time
seconds, total, times = float(sys.argv[1]), int(sys.argv[2]), open(sys.argv[3], "a")
for step in range(1, total + 1):
    time.sleep(seconds)
    print(f"\\rSteps: {step}/{total} [", end="", flush=True)
    print(time.monotonic(), file=times, flush=True)
"""


def runner(name, folder, seconds=0.02, total=PLAN.total):
    command = [sys.executable, "-S", "-c", STEPS, seconds, total, folder / f"{name}.times"]
    return turns.Runner(name, command, rf"\b(\d+)/{total} \[")


def test_a_programs_steps_are_timed_without_the_time_it_stood_still(tmp_path):
    once = turns.Plan(warm=1, steps=1, turns=3, rounds=1)
    found = turns.take([runner("quick", tmp_path), runner("slow", tmp_path, 0.5)], tmp_path, once)
    assert len(found["quick"]) == len(found["slow"]) == 1
    # a turn of the slow one, 0.5 s and more, is in no step of the quick one (what is seen is seen late on a busy machine)
    assert found["quick"][0] < 0.4 and found["slow"][0] > 0.25


def test_nobody_steps_while_another_has_its_turn(tmp_path):
    first = turns.Running(runner("first", tmp_path), tmp_path)
    try:
        first.reach(2)
        first.pause()
        before = (tmp_path / "first.times").read_text()
        time.sleep(0.2)
        assert (tmp_path / "first.times").read_text() == before
        steps, _ = first.turn(3)
        assert steps >= 3 and len((tmp_path / "first.times").read_text()) > len(before)
    finally:
        first.end()


def test_the_plan_asks_for_more_steps_than_are_run(tmp_path):
    turns.take([runner("only", tmp_path, 0.01)], tmp_path, PLAN)
    done = len((tmp_path / "only.times").read_text().splitlines())
    assert PLAN.warm + PLAN.rounds * PLAN.turns * PLAN.steps <= done < PLAN.total


def test_a_program_that_ends_early_is_named_with_what_it_said_and_the_others_are_ended_too(tmp_path):
    broken = turns.Runner(
        "broken", [sys.executable, "-S", "-c", "print('no such model'); raise SystemExit(3)"], r"(\d+)/9"
    )
    with pytest.raises(turns.Ended) as ended:
        turns.take([runner("fine", tmp_path), broken], tmp_path, PLAN)
    assert (ended.value.name, ended.value.code, ended.value.said.strip()) == ("broken", 3, "no such model")
    assert not any("fine.times" in " ".join(each.cmdline()) for each in psutil.Process().children())


def test_steps_are_read_from_a_log_where_the_program_keeps_one(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "Step", "step": 7}\n{"event": "Notice", "step": 9}\n')
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    made = turns.Runner("ours", command, r'"event": "Step".*?"step": (\d+)', file=tmp_path / "log.jsonl")
    running = turns.Running(made, tmp_path)
    try:
        assert running.reach(5)[0] == 7
    finally:
        running.end()
