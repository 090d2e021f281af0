"""A random dozen of what tests/sweep.py sweeps through, and that the sweep sees what it is there to see.

Each commit has a dozen of its own, the same one wherever it is tested: what fails once fails again for whoever looks at it.
`SWEEP_SEED=7 python -m pytest -n0 tests/run/test_sweep.py` takes another; a failure names its own.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sweep import ACTS, DAMAGE, RUNS, Ended, Operations, Place, Sweep, different, empty, full, half, kill

from trainer.cli.parse import parse
from trainer.settings.checks import check

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork")


def seed() -> int:
    if given := os.environ.get("SWEEP_SEED"):
        return int(given)
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return int(asked.stdout[:6], 16) if asked.returncode == 0 else random.randrange(10**6)


SEED = seed()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"), "default")


def forked(act) -> int:
    """The exit code of a process that does this; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_random_few_of_all_kills_and_full_disks_lose_nothing(sweep):
    draw = random.Random(SEED)
    for kind, act in ACTS.items():
        for case, wrong in sweep.struck(act, draw.sample(sweep.numbers(kind), 2)):
            assert not wrong, f"SWEEP_SEED={SEED}, {case}: {wrong}"


def test_a_random_few_of_all_damaged_files_are_mended_or_named(sweep):
    draw = random.Random(SEED)
    files = sweep.interrupted()
    for case, wrong in sweep.damaged([(path, draw.choice(DAMAGE)) for path in draw.sample(files, 4)]):
        assert not wrong, f"SWEEP_SEED={SEED}, {case}: {wrong}"


def test_what_changes_files_below_a_folder_is_counted_and_nothing_else(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "there").write_text("a")
    heard = []
    hook = Operations(tmp_path / "in", 1, lambda event, given: heard.append((event, Path(given[0]).name)))
    for event, given in [
        ("open", (str(tmp_path / "in" / "there"), "r", os.O_RDONLY)),
        ("open", (str(tmp_path / "out"), "w", os.O_WRONLY | os.O_CREAT)),
        ("open", (3, "w", os.O_WRONLY)),
        ("import", ("json",)),
        ("open", (str(tmp_path / "in" / "new"), "w", os.O_WRONLY | os.O_CREAT)),
        ("os.rename", (str(tmp_path / "in" / "new"), str(tmp_path / "in" / "there"), -1, -1)),
        ("os.remove", ("there", 7)),
    ]:
        hook(event, given)
    assert heard == [("open", "new"), ("os.rename", "new"), ("os.remove", "there")] and hook.count == 3


def test_a_kill_comes_before_its_operation_and_the_others_leave_what_they_say(tmp_path):
    def strike(act, at, write):
        def child():
            import sys

            sys.addaudithook(Operations(tmp_path, at, act))
            write()

        return forked(child)

    def write():
        (tmp_path / "a.part").write_text("0123456789")
        os.replace(tmp_path / "a.part", tmp_path / "whole")

    assert strike(kill, 1, write) == -signal.SIGKILL and not any(tmp_path.iterdir())
    assert strike(empty, 1, write) == -signal.SIGKILL and (tmp_path / "a.part").read_text() == ""
    assert strike(half, 2, write) == -signal.SIGKILL and (tmp_path / "a.part").read_text() == "01234"
    assert not (tmp_path / "whole").exists()
    assert strike(kill, 3, write) == 0 and (tmp_path / "whole").read_text() == "0123456789"
    with pytest.raises(OSError) as error:
        full("open", (str(tmp_path / "x"), "w", os.O_WRONLY))
    assert error.value.errno == errno.ENOSPC and full("os.rename", ("a", "b")) is None


def test_one_changed_number_or_a_missing_picture_is_a_difference(sweep):
    place: Place = sweep.place
    place.clear()
    assert place.start().code == 0
    assert not different(sweep.expected, place.result()), "the same run has the same bits"
    model, picture = place.folder / "run/model/model.safetensors", next((place.folder / "run/samples").glob("*.png"))
    tensors = load_file(model)
    name = next(iter(tensors))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += torch.tensor(0.5, dtype=tensors[name].dtype)
    save_file(tensors, model)
    picture.unlink()
    found = different(sweep.expected, place.result())
    assert found == sorted([model.relative_to(place.folder).as_posix(), picture.relative_to(place.folder).as_posix()])


def test_a_traceback_or_a_message_without_a_fix_is_nothing_a_person_can_mend():
    assert Ended(2, "error: full\n  fix: free space").mendable
    assert not Ended(2, "error: full").mendable and not Ended(1, "fix: ").mendable
    assert not Ended(2, "Traceback (most recent call last):\n fix: ").mendable


@pytest.mark.parametrize("run", RUNS)
def test_every_run_that_can_be_swept_is_one_that_the_program_accepts(tmp_path, run):
    check(parse(Place(tmp_path, run).words()).config())
