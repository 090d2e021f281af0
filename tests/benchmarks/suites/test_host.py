"""An update in RAM is compared with the trip that it would save, in the bytes and lanes of the planner."""

import pytest
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import host


def test_each_way_is_compared_with_moving_the_streamed_format_both_ways():
    rows = {row["what"]: row for row in host.suite(Options(tiny=True, repeats=1, warmup=0))}
    assert len(rows) == 2 and not any("failed" in row for row in rows.values())
    for row in rows.values():
        assert row["nanoseconds_of_the_trip"] == pytest.approx(5.125 / 2.7, abs=0.01)
        least = max(row["nanoseconds_each_core"] / host.CORES, 2 / 2.7)
        assert row["nanoseconds_in_ram"] == pytest.approx(least, rel=0.02), "gradients and weights cross the bus anyway"


def test_the_rows_say_what_each_way_keeps_in_ram():
    rows = {row["what"]: row["bytes_per_weight"] for row in host.suite(Options(tiny=True, repeats=1, warmup=0))}
    assert list(rows.values()) == [5.125, 12.0]
