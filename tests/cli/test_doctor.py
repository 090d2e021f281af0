"""The doctor as a whole: every part has its say whatever breaks, the summary says what works, the exit code whether training does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli import doctor, installed
from trainer.cli.finding import Line
from trainer.machine import releases
from trainer.settings.overlay import load

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config():
    return load({"run.device": "cpu"})


@pytest.fixture
def only(monkeypatch):
    """Makes the doctor find these lines and no others."""

    def only(*lines: Line) -> None:
        monkeypatch.setattr(doctor, "versions", lambda config, hidden: iter(lines))
        monkeypatch.setattr(doctor, "PARTS", {})

    return only


def test_nothing_broken_is_exit_code_0(config, only, capsys):
    only(Line("python", "ok", "3.11.7"), Line("wandb", "off", "not installed"))
    assert doctor.main(config) == 0
    assert capsys.readouterr().out.endswith("Everything that training needs works here.\n")


def test_what_is_lost_is_red_with_its_fix_and_training_still_works(config, only, capsys):
    only(Line("peft", "lost", "does not load", "pip install peft", "full fine-tuning works"))
    assert doctor.main(config) == 0
    out = capsys.readouterr().out
    assert "LOST peft" in out and "fix: pip install peft" in out and "Broken: peft" in out
    assert "without peft: full fine-tuning works" in out and out.endswith("Training works here.\n")


def test_what_training_needs_broken_is_exit_code_1(config, only, capsys):
    only(Line("peft", "lost", "gone", "a", "b"), Line("run folder", "bad", "full", "free some space"))
    assert doctor.main(config) == 1
    out = capsys.readouterr().out
    assert "BAD  run folder" in out and "fix: free some space" in out and "Broken: peft, run folder" in out
    assert out.endswith("Training does not work here until these are mended: run folder\n")


def test_a_part_that_cannot_even_be_tried_costs_its_own_line(config, monkeypatch, capsys):
    def raises(config):
        raise ImportError("libtorch.so: undefined symbol")

    monkeypatch.setattr(doctor, "versions", lambda config, hidden: iter(()))
    monkeypatch.setattr(installed, "card", raises)
    monkeypatch.setattr(doctor, "PARTS", {"Card": ("installed", "card"), "Disk": ("installed", "disk")})
    assert doctor.main(config) == 1
    out = capsys.readouterr().out
    assert "BAD  card" in out and "libtorch.so" in out and "run folder" in out


def diagnosed(folder: Path, *broken: str) -> subprocess.CompletedProcess:
    """`doctor` where these are installed and raise as they are imported."""
    for name in broken:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name}: undefined symbol')")
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "trainer", "doctor", "--device", "cpu"]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, cwd=ROOT)


def test_libraries_that_only_some_runs_use_are_named_when_broken_and_training_works(tmp_path):
    done = diagnosed(tmp_path / "broken", "peft", "bitsandbytes", "prodigyopt", "matplotlib", "triton")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    lost = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("  LOST")}
    assert lost >= {
        "peft",
        "bitsandbytes",
        "prodigyopt",
        "matplotlib",
        "adapters,",
        "bnb_adamw8bit",
        "prodigy",
        "plots",
    }
    assert "BAD" not in done.stdout and "full fine-tuning works; --method lora and dora do not" in done.stdout
    assert done.stdout.endswith("Training works here.\n")
    for name in ("training step", "pictures", "export, reloaded"):
        assert f"  ok   {name}" in done.stdout


@pytest.mark.parametrize("library", ["torch", "transformers", "diffusers", "safetensors", "tokenizers"])
def test_a_library_that_training_needs_broken_is_named_and_the_doctor_comes_to_its_end(tmp_path, library):
    done = diagnosed(tmp_path / "broken", library)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert f"{library}: undefined symbol" in done.stdout
    assert f"install --force-reinstall --no-deps -c {releases.CONSTRAINTS} {library}\n" in done.stdout
    assert "run folder" in done.stdout, "the last part was reached"
    asked = library in releases.asked()
    assert not asked or f"BAD  {library} " in done.stdout
    assert (library if asked else "training step") in done.stdout.splitlines()[-1]
