"""The log: complete, append-only, readable after a crash and while it grows; trackers get the same numbers."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from recorded_run import events

from trainer.errors import ConfigError
from trainer.events import KINDS, Event, Finished, Meters, Notice, RunStarted, Step, to_json
from trainer.readers import log
from trainer.settings.config import Config


def started(run: Path) -> RunStarted:
    return RunStarted(
        str(run), {"train": {"seed": 0, "learning_rate": 1e-6}, "data": {"targets": ["a"]}}, {}, "CPU", "demo", {}
    )


def step(n: int) -> Step:
    return Step(n, 3, 0.5, 0.3, math.nan, 1e-6, 1.0, 0.25, 2, 0, 0, 0, 2**30)


def test_what_is_read_back_is_what_happened(tmp_path: Path) -> None:
    happened = list(events(tmp_path, steps=20))
    assert list(log.record(happened)) == happened, "recording changes nothing"
    assert [to_json(e) for e in log.read(tmp_path / "run")] == [to_json(e) for e in happened]


def test_events_before_the_folder_is_known_are_not_lost(tmp_path: Path) -> None:
    list(log.record([Notice("early"), started(tmp_path), step(1)]))
    assert [type(e).__name__ for e in log.read(tmp_path)] == ["Notice", "RunStarted", "Step"]


def test_a_line_is_on_disk_before_the_next_event_is_asked_for(tmp_path: Path) -> None:
    def run() -> Iterator[Event]:
        yield started(tmp_path)
        yield step(1)
        assert len(list(log.read(tmp_path))) == 2

    assert len(list(log.record(run()))) == 2


def test_a_resumed_run_is_appended_even_after_half_a_line(tmp_path: Path) -> None:
    list(log.record([started(tmp_path), step(1)]))
    with (tmp_path / log.NAME).open("a") as file:
        file.write('{"event": "Step", "step": 2, "to')
    list(log.record([replace(started(tmp_path), resumed_from="step-000001"), step(2)]))
    assert [getattr(e, "step", type(e).__name__) for e in log.read(tmp_path)] == ["RunStarted", 1, "RunStarted", 2]


def test_lines_of_a_newer_version_are_passed_over() -> None:
    assert log.parse('{"event": "Dreamt", "time": 1}') is None
    assert log.parse('{"event": "Notice", "time": 1, "text": "a", "mood": "new"}') is None
    assert log.parse("3") is None and log.parse("") is None
    assert log.parse(to_json(Notice("a", time=1.0))) == Notice("a", time=1.0)


def test_closing_the_record_closes_the_run_and_the_file(tmp_path: Path) -> None:
    closed = []

    def run() -> Iterator[Event]:
        try:
            yield started(tmp_path)
            yield step(1)
        finally:
            closed.append(True)

    recording = log.record(run())
    next(recording)
    recording.close()
    assert closed == [True]


def test_following_sees_what_is_written_later_and_ends_with_the_run(tmp_path: Path) -> None:
    list(log.record([started(tmp_path), step(1)]))
    seen: list[Event] = []
    follower = threading.Thread(target=lambda: seen.extend(log.follow(tmp_path, poll_seconds=0.01)))
    follower.start()
    line = to_json(step(2)) + "\n"
    with (tmp_path / log.NAME).open("a") as file:
        for part in (line[:20], line[20:], to_json(Finished("done", 2, 1.0, str(tmp_path), "")) + "\n"):
            file.write(part)
            file.flush()
            time.sleep(0.03)
    follower.join(10)
    assert [getattr(e, "step", None) for e in seen] == [None, 1, 2, 2]


def test_following_can_be_left(tmp_path: Path) -> None:
    list(log.record([started(tmp_path)]))
    asked = iter([False, False, True])
    assert len(list(log.follow(tmp_path, 0.0, stop=lambda: next(asked)))) == 1


def test_a_folder_without_a_log_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no log\.jsonl"):
        list(log.read(tmp_path))


@pytest.mark.parametrize("read", [log.read, log.follow])
def test_what_is_no_log_is_refused_and_never_waited_for(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    (tmp_path / "empty").touch()
    (tmp_path / "half").write_text('{"event": "Noti')
    (tmp_path / "of another.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    for path in tmp_path.iterdir():
        with pytest.raises(ConfigError, match="is no log of a run"):
            next(read(path))


def test_the_log_of_a_run_that_has_just_begun_is_waited_for(tmp_path: Path) -> None:
    asked = iter([False, True])
    for begun in ("", '{"event": "RunSt'):
        (tmp_path / log.NAME).write_text(begun)
        assert list(log.follow(tmp_path, 0.0, stop=lambda: next(asked, True))) == []


def test_the_documented_structure_names_every_kind_and_field() -> None:
    assert log.__doc__ is not None
    cells: dict[str, str] = {}
    kind = ""
    for line in log.__doc__.splitlines():
        if line.startswith("| "):
            columns = [column.strip() for column in line.strip("|").split("|")]
            kind = columns[0] or kind
            cells[kind] = cells.get(kind, "") + " " + columns[2]
    del cells["event"]
    assert set(cells) == set(KINDS)
    for name, cls in KINDS.items():
        assert cells[name].split() == [f.name for f in fields(cls) if f.name != "time"], name


def test_readings_that_were_not_taken_are_not_plotted() -> None:
    values = log.scalars(step(1))
    assert values["loss/instance"] == 0.3 and values["speed/images_per_second"] == 8.0
    assert "loss/class" not in values and "gpu/load" not in values and "memory/vram_gib" not in values
    assert log.scalars(Meters(1, {"drift": 0.1, "subject": math.nan})) == {"meters/drift": 0.1}
    assert log.scalars(Notice("a")) == {}


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = Config()
    config.run.report_to = ["tensorboard"]
    list(log.record(events(tmp_path, steps=8), config))
    board = EventAccumulator(str(tmp_path / "run" / "trackers" / "run"))
    board.Reload()
    losses = board.Scalars("loss/instance")
    expected = [e.instance_loss for e in log.read(tmp_path / "run") if isinstance(e, Step)]
    assert [e.step for e in losses] == list(range(1, 9))
    assert [e.value for e in losses] == pytest.approx(expected)
    assert len(board.Scalars("meters/drift")) == 4
    assert "a photo of sks dog/0" in board.Tags()["images"] or board.Tags()["images"]


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(tmp_path: Path) -> None:
    if find_spec("wandb"):
        pytest.skip("wandb is installed here")
    config = Config()
    config.run.report_to = ["wandb"]
    with pytest.raises(ConfigError, match=r"pip install .* wandb"):
        next(log.record(iter([started(tmp_path)]), config))
    assert not (tmp_path / log.NAME).exists()


def test_the_log_is_json_lines_without_bare_nan(tmp_path: Path) -> None:
    list(log.record([started(tmp_path), step(1)]))
    for line in (tmp_path / log.NAME).read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
