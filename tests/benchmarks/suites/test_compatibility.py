"""A row of the tables of what people bring and take is what tests that ran say, and holds only where all of them pass."""

import os
import subprocess
import sys

import pytest
import shown
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import compatibility

TESTS = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_a_line(number, record_property):
    record_property("shows", "bring|them|a line|works")

@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file(number, record_property):
    record_property("shows", "take|them|a file|works")
    assert number < 3

@pytest.fixture
def broken():
    raise OSError("no place")

def test_a_pickle(record_property, broken):
    record_property("shows", "bring|them|never said|refused")

def test_that_shows_nothing():
    pass
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    def run(tests: str) -> list[dict]:
        (tmp_path / "test_theirs.py").write_text(tests)
        monkeypatch.setattr(compatibility.jobs, "ROOT", tmp_path)
        monkeypatch.setattr(compatibility, "TESTS", ("test_theirs.py",))
        return list(compatibility.suite(Options("sd1", None, False, 1, 1, ())))

    return run


def test_tests_that_show_the_same_are_one_row_which_one_that_fails_makes_false(rows):
    bring, take, broken = rows(TESTS)
    assert bring == {"table": "bring", "program": "them", "what": "a line", "outcome": "works", "tests": 2}
    assert (take["outcome"], take["tests"], take["failed"]) == ("fails", 3, "1 of them fail")
    assert "test_a_pickle" in broken["failed"], "what broke before it could say what it shows is no silence"


def test_tests_that_cannot_run_are_a_row_that_fails(rows):
    (row,) = rows("import nothing_of_this_name\n")
    assert "nothing_of_this_name" in row["failed"]


README = """
<!-- bench:compatibility table=bring:begin -->
| program | what | here | tests |
|---|---|---|---|
| them | a line, or another | works | 2 |

Measured somewhere.
<!-- bench:compatibility:end -->
"""


@pytest.mark.parametrize(("row", "why"), [
    ("bring|them|a line, or another|works", ""),
    ("bring|them|a line, or another|refused", "do not say so: bring|them|a line, or another|refused"),
    ("take|them|a line, or another|works", "python -m benchmarks compatibility"),
    ("bring|them|a file|works", "python -m benchmarks report"),
])  # fmt: skip
def test_a_table_that_lacks_what_a_test_shows_is_stale(row, why):
    said = shown.stale([row], README)
    assert why in said and bool(said) == bool(why)


def test_a_test_that_passes_fails_while_the_readme_does_not_say_what_it_shows(tmp_path):
    (tmp_path / "conftest.py").write_text((shown.README.parent / "tests/conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_theirs.py").write_text(TESTS.partition("@pytest.fixture")[0])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        tmp_path,
        "-k",
        "a_line",
    ]
    lookup = os.pathsep.join((str(shown.README.parent / "tests"), os.environ.get("PYTHONPATH", "")))
    for anew, outcome in ({}, "2 failed"), ({"TABLES_ANEW": "1"}, "2 passed"):
        kept = {key: value for key, value in os.environ.items() if key != "TABLES_ANEW"} | {"PYTHONPATH": lookup} | anew
        done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert outcome in done.stdout, done.stdout + done.stderr
