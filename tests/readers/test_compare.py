"""Comparing runs: what differs, in the terminal and on a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded_run import events

from trainer.errors import ConfigError
from trainer.readers import compare, log
from trainer.readers.view.state import replay


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compare")
    list(log.record(events(folder / "careful", steps=24)))
    list(log.record(events(folder / "bold", steps=16, with_prior=False, lr=5e-6)))
    return [folder / "careful" / "run", folder / "bold" / "run"]


def test_only_settings_that_differ_are_named(runs: list[Path]) -> None:
    rows = dict(compare.differences([replay(log.read(run)) for run in runs]))
    assert rows["train.learning_rate"] == ["2e-06", "5e-06"]
    assert rows["prior.with_prior_preservation"] == ["true", "false"]
    assert "train.seed" not in rows and "run.output_dir" not in rows


def test_outcomes_show_a_gap_where_a_run_has_no_such_reading(runs: list[Path]) -> None:
    rows = dict(compare.outcomes([replay(log.read(run)) for run in runs]))
    assert rows["steps"] == ["24", "16"] and rows["class loss"][1] == "-" and rows["drift"] == ["0.3000", "0.3000"]


def test_the_terminal_has_the_tables_and_says_where_the_page_is(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(runs) == 0
    said = capsys.readouterr().out
    assert "train.learning_rate" in said and "careful/run" in said
    written = Path(said.strip().splitlines()[-1])
    assert written == runs[0].parent.parent / "compare.html"
    text = written.read_text(encoding="utf-8")
    assert text.count("<img") == 8 and "Instance loss" in text and "var(--run1)" in text


def test_runs_of_one_name_are_told_apart() -> None:
    assert compare.names([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]
    assert compare.names([Path("/a/x"), Path("/b/y")]) == ["x", "y"]
    assert compare.names([Path("/a/x"), Path("/a/x")]) == ["/a/x (1)", "/a/x (2)"]


def test_one_run_is_no_comparison(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        compare.main(runs[:1])
