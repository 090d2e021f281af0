"""Exit codes are a promise to whoever starts runs from a script: the README's table, walked line by line."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.errors import Diverged
from trainer.events import Finished, Notice
from trainer.files.claim import claimed
from trainer.out import checkpoint
from trainer.readers import log
from trainer.run import loop, saving

README = Path(__file__).parents[2] / "README.md"
SHORT = (
    "--class_name dog --resolution 64 --max_train_steps 2 --num_validation_images 0 --no-with_prior_preservation "
    "--no-watch --formats single_file --dashboard off"
)


@pytest.fixture
def code(place, capsys, request):
    """code(*words) -> (exit code, what was said, how the log ends)."""

    def run(*more):
        name = re.sub(r"\W+", "-", request.node.name)[-60:]
        there = {"model": place / "sd1", "instance_data_dir": place / "photos", "cache_dir": place / "cache"}
        folders = [word for flag, path in {**there, "output_dir": place / name}.items() for word in (f"--{flag}", path)]
        given = [str(word) for word in (*folders, *SHORT.split(), *more)]
        found = main(given)
        said, folder = capsys.readouterr(), place / name
        last = [*log.read(folder)][-1] if (folder / log.NAME).exists() else None
        return found, said.out + said.err, last

    return run


def step_that(act):
    """The loop's step, before which `act` happens."""
    real = loop.one_step

    def one_step(trained, late):
        act()
        yield from real(trained, late)

    return one_step


def refuses(error):
    def act(*_):
        raise error

    return act


def test_0_a_run_that_came_to_its_end(code):
    found, said, last = code()
    assert found == 0 and isinstance(last, Finished) and last.status == "done" and "error:" not in said


def test_1_a_fault_of_the_program_is_one_line_and_its_traceback_is_in_the_log(code, monkeypatch):
    monkeypatch.setattr(loop, "one_step", step_that(lambda: 1 // 0))
    found, said, last = code()
    assert found == 1 and "error: a fault of this program (ZeroDivisionError" in said and "log.jsonl" in said
    assert "Traceback" not in said
    assert isinstance(last, Finished) and last.status == "failed" and "ZeroDivisionError" in last.error


def test_1_a_fault_before_there_is_a_log_is_shown(code, monkeypatch):
    from trainer.run import stages

    monkeypatch.setattr(stages, "prepare", refuses(ZeroDivisionError("planned")))
    with pytest.raises(ZeroDivisionError) as raised:  # what Python prints, and ends with 1 for
        code()
    assert "please report it" in raised.value.__notes__[0]


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.ENOSPC, "No space left on device", "engine.safetensors"), "the disk is full: engine.safetensors"),
    (OSError(errno.EIO, "Input/output error", "latents"), "check the disk"),
    (Diverged("The loss became nan.\n  fix: lower --learning_rate"), "lower --learning_rate"),
])  # fmt: skip
def test_2_what_a_person_can_mend_in_the_middle_of_a_run(code, monkeypatch, error, said):
    monkeypatch.setattr(loop, "one_step", step_that(refuses(error)))
    found, told, last = code()
    assert found == 2 and said in told and told.count("fix: ") == 1 and "Traceback" not in told
    assert isinstance(last, Finished) and last.status == "failed" and said in last.error


def test_2_no_room_for_the_next_checkpoint(code, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(saving.checkpoint.shutil, "disk_usage", lambda place: Usage(100_000_000))
    monkeypatch.setattr(checkpoint.State, "bytes", 10**9)
    found, told, _ = code()
    assert found == 2 and "a checkpoint needs 1.00 GB" in told and "Traceback" not in told


def test_2_a_photo_that_goes_while_class_images_are_drawn(place, code, monkeypatch):
    from trainer.run import assemble

    shutil.copytree(place / "photos", place / "going")
    real = assemble.cache

    def cache(*given):
        (place / "going" / "1.png").unlink()
        return real(*given)

    monkeypatch.setattr(assemble, "cache", cache)
    found, told, last = code("--instance_data_dir", place / "going", "--cache_dir", place / "cache-of-going")
    assert found == 2 and "1.png was there and is not any more" in told and last.status == "failed"


def test_2_a_folder_that_another_run_is_at_work_in(place, code):
    config = place / "busy" / "config.toml"
    with claimed(place / "busy"):
        config.write_text("of the run that is at work")
        found, told, _ = code("--output_dir", place / "busy", "--overwrite")
    assert found == 2 and f"process {os.getpid()} on " in told and "watch" in told
    assert config.read_text() == "of the run that is at work" and not (place / "busy" / log.NAME).exists()


def test_2_a_setting_that_cannot_be(code):
    assert code("--learning_rate", "nan")[0] == 2


def test_130_interrupted_after_saving(place, code, monkeypatch):
    monkeypatch.setattr(loop, "one_step", step_that(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    found, said, last = code()
    assert found == 130 and last.status == "interrupted" and "Go on with: " in said
    assert [point.name for point in checkpoint.found(Path(last.run_dir))] == ["step-000001"]


def test_the_readme_has_a_line_for_every_code():
    rows = re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), re.M)
    tested = {re.match(r"test_(\d+)_", name)[1] for name in globals() if re.match(r"test_\d+_", name)}
    assert set(rows) == tested


@pytest.mark.skipif(os.name == "nt", reason="streams are closed in another way there")
@pytest.mark.parametrize("never", [False, True], ids=["its reader leaves", "its output was never open"])
def test_a_run_that_nobody_reads_goes_on_and_ends_with_its_own_code_as_help_says(place, never):
    """The program itself: exit code 0, a model, and a log that says what became of the output."""
    run = place / f"unread-{never}"
    given = ["--model", place / "sd1", "--instance_data_dir", place / "photos", "--output_dir", run, *SHORT.split()]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *map(str, given), "--max_train_steps", "1"],
        cwd=README.parent,
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.close(1)) if never else None,
    )
    os.close(write)
    assert done.returncode == 0, done.stderr
    happened = [*log.read(run)]
    assert isinstance(happened[-1], Finished) and happened[-1].status == "done"
    assert any((run / "model").rglob("*.safetensors"))
    said = [event for event in happened if isinstance(event, Notice) and event.text.startswith("Nobody reads")]
    assert len(said) == (0 if never else 1)
