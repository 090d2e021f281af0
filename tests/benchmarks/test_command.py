"""The command: what it refuses, what it prints last, and where rows go."""

import contextlib
import io
import json
from importlib import import_module

import pytest
from trainer.benchmarks import __main__ as command
from trainer.benchmarks.harness import rows
from trainer.benchmarks.suites import kernels, peers


def test_every_suite_on_the_help_page_takes_options_and_gives_rows():
    for name in command.SUITES:
        assert list(import_module(f"trainer.benchmarks.suites.{name}").suite.__annotations__) == [
            "options",
            "return",
        ], name


@pytest.mark.parametrize(
    "words,fix",
    [
        (["ladder", "--model", "sd9"], "Choose one of sd1"),
        (["ladder", "--preset", "12gb"], "Leave --preset out"),
        (["presets", "--preset", "9gb"], "Choose one of 4gb, 6gb"),
        (["ladder", "word"], "Leave them out"),
        (["kernels", "--repeats", "0"], "--repeats 1"),
        (["peers", "--tiny", "kohyaa=/x"], "NAME is one of diffusers, kohya, onetrainer"),
        (["peers", "--tiny", "diffusers=/nowhere"], "root folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_fix_before_anything_is_built(words, fix, capsys):
    assert command.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and fix in said.err


def run(*words: str) -> list[str]:
    """The lines that the command prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert command.main([*words]) == 0
    return said.getvalue().splitlines()


def test_the_last_line_is_one_json_document_and_rows_are_appended_with_their_origin(tmp_path):
    for _ in range(2):
        lines = run("kernels", "--tiny", "--repeats", "1", "--out", str(tmp_path))
    document = json.loads(lines[-1])
    written = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert len(lines) > 3 and document["suite"] == "kernels"
    assert len(written) == 2 * len(document["rows"])
    for row in written:
        assert row["origin"]["versions"]["torch"] and row["origin"]["cpu"]
        assert {"time", "gpu", "commit", "threads"} <= row["origin"].keys()


def test_tiny_rows_are_written_nowhere_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(kernels, "suite", lambda options: iter([{"kernel": "copy"}]))
    assert len(run("kernels", "--tiny", "--json")) == 1
    assert not list(tmp_path.iterdir())


def test_words_may_stand_behind_options(monkeypatch):
    seen = []
    monkeypatch.setattr(peers, "suite", lambda options: seen.append(options) or iter(()))
    run("peers", "--model", "sd15", "--tiny", "diffusers=/somewhere")
    assert seen[0].words == ("diffusers=/somewhere",) and seen[0].model == "sd1"
