"""Runs that share a cache make what they share one after the other: in two processes, and whatever becomes of the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from photos import folder_of
from tiny_run import events, of, words

from trainer.cli.parse import parse
from trainer.events import Controls, Finished, Notice, PhaseEnded, PhaseProgress, PhaseStarted
from trainer.files.claim import Claim
from trainer.machine.phase import Phase
from trainer.models import SD1
from trainer.prior import turn
from trainer.prior.manifest import Manifest
from trainer.run import stages

TESTS = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from trainer.files.claim import Claim
with Claim(Path(sys.argv[1])) as claim:
    assert not claim.take()
    print("ready", flush=True)
    sys.stdin.read()
"""
# a run that stands before its class images until it is told to go on, so that two of them look at one moment
RUN = """
import sys
from pathlib import Path
import torch
from tiny_run import started
from trainer.events import PhaseEnded
torch.set_num_threads(1)
for event in started(Path(sys.argv[1]), *sys.argv[3:], run=sys.argv[2]):
    if isinstance(event, PhaseEnded) and event.phase == "cache text":
        print("ready", flush=True)
        sys.stdin.read()
"""
MANY = (
    "--num_class_images",
    8,
    "--sample_steps",
    12,
    "--max_train_steps",
    2,
    "--num_validation_images",
    0,
    "--formats",
    "single_file",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    SD1.pipeline(SD1.tiny()).save_pretrained(folder / "sd1")
    folder_of(folder / "photos")
    return folder


@pytest.fixture(scope="module")
def class_images(place: Path) -> Path:
    """The folder of class images that runs share, of which a first run has drawn two."""
    events(place, *MANY, "--num_class_images", 2, run="first")
    [folder] = (place / "cache" / "class_images").iterdir()
    assert len(list(folder.glob("*.png"))) == 2
    return folder


def begin(code: str, *more: object) -> subprocess.Popen[str]:
    """Another process, come to where it says that it is ready."""
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
    line = [sys.executable, "-c", code, *map(str, more)]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=known)


def wait_for(begun: subprocess.Popen[str]) -> None:
    assert begun.stdout is not None and begun.stdout.readline() == "ready\n"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    other = begin(HOLD, tmp_path / "shared")
    wait_for(other)
    yield other
    other.kill()
    other.communicate()


def coming(tmp_path: Path) -> list[object]:
    """What it takes to come to one's turn, and the claim was held meanwhile."""
    with Claim(tmp_path / "shared") as claim:
        return list(turn.come(claim, Phase("class images", "cpu"), "drawing them"))


def logged(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_runs_at_once_have_one_set_of_class_images_and_go_on_with_it(place: Path) -> None:
    """Batches of other sizes, as presets have them, draw the same pictures with other last bits."""
    shared = (*MANY, "--cache_dir", place / "shared")
    runs = {name: (*shared, "--sample_batch_size", batch) for name, batch in (("one", 1), ("four", 4))}
    begun = [begin(RUN, place, name, *more) for name, more in runs.items()]
    for run in begun:
        wait_for(run)
    for run in begun:
        assert run.stdin is not None
        run.stdin.close()
    assert [run.wait(300) for run in begun] == [0, 0]

    logs = [logged(place / name) for name in runs]
    done = [
        row["detail"] for log in logs for row in log if row["event"] == "PhaseEnded" and row["phase"] == "class images"
    ]
    drawn = [detail for detail in done if "drawn" in detail]
    assert sorted(drawn) == [
        "0 class images drawn, 8 reused: 8 different",
        "8 class images drawn, 0 reused: 8 different",
    ]
    told = [row["text"] for log in logs for row in log if row["event"] == "Notice"]
    assert sum("waits for it" in text for text in told) == done.count("waited for another run") == 1

    [folder] = (place / "shared" / "class_images").iterdir()
    pictures = {path.name for path in folder.glob("*.png")}
    assert len(pictures) == 8 and set(Manifest.read(folder).images) == pictures
    used = [(place / name / "class_images.json").read_text() for name in runs]
    assert used[0] == used[1]
    for name, more in runs.items():
        again = events(place, *more, "--resume_from_checkpoint", "latest", run=name)
        assert not [event.text for event in of(Notice, again) if "class images" in event.text.lower()]


def test_a_turn_that_nobody_has_is_ones_own_at_once(tmp_path: Path) -> None:
    assert coming(tmp_path) == [] == coming(tmp_path)


def test_who_waits_says_once_for_whom_and_for_what(tmp_path: Path, holder: subprocess.Popen[str], monkeypatch) -> None:
    polls = 0

    def poll(seconds: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 5:
            holder.communicate()

    monkeypatch.setattr(turn.time, "sleep", poll)
    first, begun, *waiting, end = coming(tmp_path)
    assert isinstance(first, Notice) and f"(process {holder.pid} on" in first.text and "drawing them" in first.text
    assert isinstance(begun, PhaseStarted) and isinstance(end, PhaseEnded)
    assert len(waiting) == 5 and all(isinstance(event, PhaseProgress) for event in waiting)


def test_the_turn_of_a_process_that_is_killed_is_free(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch
) -> None:
    def kill(seconds: float) -> None:
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    monkeypatch.setattr(turn.time, "sleep", kill)
    assert isinstance(coming(tmp_path)[-1], PhaseEnded)
    assert coming(tmp_path) == [], "and is given back"


def test_a_run_that_waits_hears_that_it_is_to_stop(place: Path, class_images: Path) -> None:
    controls, found = Controls(), []
    with Claim(class_images) as claim:
        assert not claim.take()
        for event in stages.run(parse(words(place, *MANY, run="stopped")).config(), controls):
            found.append(event)
            controls.quit |= isinstance(event, PhaseProgress) and event.phase == "class images"
    assert of(Finished, found)[0].status == "interrupted"
    assert [event.done for event in of(PhaseProgress, found) if event.phase == "class images"] == [0]


def test_a_run_whose_other_is_killed_draws_what_is_missing(place: Path, class_images: Path) -> None:
    other = begin(HOLD, class_images)
    wait_for(other)
    found = []
    for event in stages.run(parse(words(place, *MANY, run="stays")).config(), Controls()):
        found.append(event)
        if isinstance(event, PhaseProgress) and event.phase == "class images":
            other.kill()
            other.communicate()
    ended = [event.detail for event in of(PhaseEnded, found) if event.phase == "class images"]
    assert ended == ["waited for another run", "6 class images drawn, 2 reused: 8 different"]
    assert of(Finished, found)[0].status == "done"
