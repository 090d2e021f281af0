"""Repeats are counted, the first ones forgotten, and a row that fails loses nothing but itself."""

import pytest
import torch
from trainer.benchmarks.harness import timing
from trainer.benchmarks.harness.timing import Options, Timed, guarded, timed


def test_what_warms_up_runs_but_is_not_timed():
    calls = []
    row = timed(lambda: calls.append(1), Options(repeats=3, warmup=2))
    assert len(calls) == 5 and len(row.seconds) == 3


def test_seconds_are_those_of_each_call(monkeypatch):
    clock = iter((10.0, 11.0, 20.0, 24.0))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timed(lambda: None, Options(repeats=2, warmup=0)).seconds == (1.0, 4.0)


def test_a_row_holds_the_median_half_the_range_and_images_a_second():
    row = Timed((2.0, 4.0, 1.0), 0, 0, 0, 5).row(images=6)
    assert row == {"seconds": 2.0, "spread": 1.5, "images_per_second": 3.0, "peak_rss_bytes": 5}


def test_a_card_adds_its_peaks():
    assert Timed((1.0,), 7, 8, 9, 5).row(1)["peak_reserved_bytes"] == 8


@pytest.mark.parametrize(
    "error", [RuntimeError("no room\nmore"), torch.OutOfMemoryError("no room"), OSError("no room")]
)
def test_what_cards_libraries_and_disks_say_becomes_a_column(error, capsys):
    def measure():
        raise error

    assert guarded({"case": 1}, measure) == {"case": 1, "failed": f"{type(error).__name__}: no room"}
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_ends_the_suite():
    with pytest.raises(KeyError):
        guarded({}, lambda: {}["missing"])


def test_host_memory_counts_from_when_it_was_forgotten():
    timing.forget_peak_rss()
    before = timing.peak_rss()
    block = torch.ones(64 << 18)  # 64 MiB
    assert timing.peak_rss() - before > 48 << 20
    del block
