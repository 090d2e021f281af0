"""A start without its libraries, or in another Python than the one they are in, is one message with what to type."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.machine import mending

ROOT = Path(__file__).parent.parent.parent


def start(*options: str, **surroundings: str) -> subprocess.CompletedProcess:
    """`doctor` in the checkout."""
    command = [sys.executable, *options, "-m", "trainer", "doctor"]
    return subprocess.run(command, env={**os.environ, **surroundings}, capture_output=True, text=True, cwd=ROOT)


def test_a_python_that_has_nothing_is_told_where_everything_is_or_how_to_get_it():
    done = start("-S", PYTHONPATH="")  # without its site-packages it is a fresh Python
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"which this needs, is not installed for {sys.executable}" in done.stderr
    assert f" -m pip install -c {mending.CONSTRAINTS} -e {ROOT}" in done.stderr


@pytest.mark.parametrize("library", ["pydantic", "packaging", "filelock"])
def test_a_library_that_even_the_command_line_needs_is_named_when_it_breaks(tmp_path, library):
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise RuntimeError('undefined symbol')")
    done = start(PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"error: {library}, which this needs, does not load (undefined symbol)" in done.stderr
    assert done.stderr.rstrip().endswith(f"--force-reinstall --no-deps -c {mending.CONSTRAINTS} {library}")


def test_another_python_is_pointed_to_the_environment_of_the_checkout(monkeypatch, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    monkeypatch.setattr(mending, "PACKAGE", tmp_path / "trainer")
    monkeypatch.chdir(tmp_path)
    error = mending.stumbled(ModuleNotFoundError("No module named 'pydantic'", name="pydantic"))
    assert error is not None and error.fix.startswith(
        f"start it by {Path('.venv/bin/python')}, where it was set up; or "
    )


def caught(act) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("it went well")


def test_a_fault_of_ours_and_a_library_that_fails_at_its_work_are_no_matter_of_installing(monkeypatch, tmp_path):
    (tmp_path / "at_work.py").write_text("def work():\n    raise RuntimeError('out of memory')")
    monkeypatch.syspath_prepend(str(tmp_path))
    working = importlib.import_module("at_work").work
    assert mending.stumbled(caught(working)) is None
    ours = ImportError("cannot import name 'x' from 'trainer.units'", name="trainer.units")
    assert mending.stumbled(ours) is None
    assert mending.stumbled(ModuleNotFoundError("No module named 'trainer.gone'", name="trainer.gone")) is None
