"""A stage's events: the same name and total throughout, its own time, and a peak that begins with it."""

import pytest
import torch

from trainer.events import PHASES, PhaseEnded, PhaseProgress, PhaseStarted
from trainer.machine.phase import Phase


def test_a_phase_begins_goes_on_and_ends_under_one_name_with_one_total():
    phase = Phase("cache images", "cpu")
    started, going, ended = (
        phase.start(12, "photos"),
        phase.progress(5, "dog.png"),
        phase.end("12 photos", "runs/cache"),
    )
    assert isinstance(started, PhaseStarted) and isinstance(going, PhaseProgress) and isinstance(ended, PhaseEnded)
    assert {event.phase for event in (started, going, ended)} == {"cache images"}
    assert (started.total, started.detail) == (12, "photos")
    assert (going.done, going.total, going.detail) == (5, 12, "dog.png")
    assert (ended.detail, ended.folder) == ("12 photos", "runs/cache")


def test_seconds_are_those_between_its_start_and_its_end(monkeypatch):
    from trainer.machine import phase as module

    clock = iter((100.0, 103.5))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    phase = Phase("train", "cpu")
    phase.start()
    assert phase.end().seconds == 3.5


def test_host_memory_is_real_and_a_cpu_has_no_card():
    phase = Phase("save", torch.device("cpu"))
    phase.start()
    ended = phase.end()
    assert ended.ram_bytes > 2**20 and ended.vram_peak_bytes == 0


def test_only_the_stages_that_readers_know_can_begin():
    for name in PHASES:
        Phase(name, "cpu")
    with pytest.raises(AssertionError, match="'lunch' is not one of"):
        Phase("lunch", "cpu")
