"""However a run ends, its last event says how, and what to type next."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import prepared

from trainer.errors import ConfigError, Diverged
from trainer.events import CheckpointSaved, Controls, PhaseEnded, Step
from trainer.machine.team import Team
from trainer.run.ending import Ending, Quit


def ended(run, what, controls=None):
    """The last event of a run whose work takes one step and then does `what()`."""

    def work():
        yield Step(7, 9, *[0.0] * 6, 1, 0, 0, 0, 0)
        return what()

    ending = Ending(run, 0.0)
    list(ending.watch(work(), controls or Controls()))
    return ending.finished()


@pytest.fixture(scope="module")
def run(place):
    return prepared(place, run="ending")


def test_a_run_that_training_ended_early_says_why(run):
    finished = ended(run, lambda: "drift: pictures moved")
    assert (finished.status, finished.step) == ("done", 7)
    assert finished.text.startswith("stopped early: drift: pictures moved\n")
    assert "stopped early" not in ended(run, lambda: "").text


def test_a_run_that_was_asked_to_stop_is_interrupted_and_says_how_to_go_on(run):
    finished = ended(run, lambda: "asked to stop", Controls(quit=True))
    assert finished.status == "interrupted" and f"--config {run.folder}/config.toml" in finished.text


def test_lines_to_paste_survive_the_shell(run):
    photo = replace(run.photos.photos[0], prompt='it\'s $HOME of a "dog"')
    odd = replace(run, folder=Path("runs/it's mine"), photos=replace(run.photos, photos=(photo,)))
    line = next(line for line in ended(odd, lambda: "").text.splitlines() if "sample" in line)
    words = shlex.split(line.partition(":")[2])
    assert words == ["python", "-m", "trainer", "sample", "runs/it's mine", "--prompt", photo.prompt]
    again = ended(odd, lambda: "", Controls(quit=True)).text.partition("Go on with: ")[2]
    assert shlex.split(again)[3:5] == ["--config", "runs/it's mine/config.toml"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Quit(), "interrupted", ""),
        (KeyboardInterrupt(), "interrupted", ""),
        (Diverged("The loss became nan"), "failed", "The loss became nan"),
        (ConfigError("The disk is full.", "Free space."), "failed", "fix: Free space."),
        (torch.OutOfMemoryError("CUDA out of memory\n0x7f"), "failed", "CUDA out of memory\n  fix: a smaller --preset"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_stops_a_run_short_becomes_words(run, error, status, said):
    def fail():
        raise error

    finished = ended(run, fail)
    assert finished.status == status and finished.step == 7
    assert finished.error.startswith(said) or said in finished.error
    assert "--resume_from_checkpoint latest" in finished.text


def test_what_all_cards_see_is_said_by_the_first(run):
    def fail():
        raise Diverged("The loss became nan")

    finished = ended(replace(run, team=Team(1, 2)), fail)
    assert finished.status == "failed" and finished.error == ""


def test_a_fault_of_ours_is_not_hidden(run):
    def fail():
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        ended(run, fail)


def test_the_largest_peak_of_each_phase_is_held_against_the_plan(run):
    def work():
        yield PhaseEnded("sample", 1.0, 5 << 30, 0)
        yield PhaseEnded("sample", 1.0, 3 << 30, 0)
        yield CheckpointSaved(4, "step-000004", 1, 0.1, "last")
        return ""

    ending = Ending(run, 0.0)
    list(ending.watch(work(), Controls()))
    assert ending.step == 4 and ending.peaks == {"sample": 5 << 30}
    assert "sample" in next(iter(ending.against_plan())).text


def test_cards_leave_their_group_where_all_came_to_the_end_and_only_there(run):
    """A process that ends with the group's threads is aborted now and then; one that breaks off must not wait for the others."""

    def broken():
        raise ConfigError("wrong", "mend it")

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        several = replace(run, team=Team(0, 2))
        assert ended(several, broken).status == "failed" and torch.distributed.is_initialized()
        assert ended(several, lambda: "").status == "done" and not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
