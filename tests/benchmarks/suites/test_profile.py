"""The profile accounts for all of a step's time."""

import pytest
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import profile

TINY = Options(tiny=True, repeats=1, warmup=0)


def test_the_profile_accounts_for_the_step():
    rows = list(profile.suite(TINY))
    step, busy, waiting, *operators = rows
    assert step["tflop"] > 0 and step["operators"] > 100 and 0 < step["achieved"] < 1.5
    assert busy["share"] + waiting["share"] == pytest.approx(1, abs=0.05) or busy["share"] > 1
    assert len(operators) == profile.TOP and operators[0]["seconds"] >= operators[-1]["seconds"]


def test_kernels_that_overlap_on_several_streams_count_once():
    assert profile.covered([(0, 4), (2, 3), (10, 12), (11, 15)]) == 9
