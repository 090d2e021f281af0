"""A process learns its place from the environment that launchers make, and exit codes come through."""

import os
import signal

import pytest
import torch

from trainer.errors import ConfigError
from trainer.machine import launcher


def test_a_launcher_says_how_many_there_are_and_which_one_this_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (launcher.expected(), launcher.rank()) == (4, 2)


@pytest.mark.parametrize(("among", "said", "done"), [
    ([False, False, False], "card 1 ends; it had not met the others yet", ("left", 2)),
    ([False, False, True], "so the run saves and ends", ("asked", signal.SIGTERM)),
    ([False, True, False], "", None),  # another saw it first, and this one writes its report
], ids=["joining", "training", "leaving"])  # fmt: skip
def test_a_process_whose_launcher_was_killed_ends_as_far_as_it_has_come(monkeypatch, capsys, among, said, done):
    looks, ends = [], []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(launcher.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "getppid", lambda: looks.append("again") or {3: 1}.get(len(looks), 7))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: among[len(looks) - 1])
    monkeypatch.setattr(os, "_exit", lambda code: ends.append(("left", code)))
    monkeypatch.setattr(os, "kill", lambda process, number: ends.append(("asked", number)))
    launcher._outlive(7)
    assert ends == [done] * bool(done) and said in capsys.readouterr().err


def test_the_first_of_several_forgets_the_others_and_no_choice_of_a_persons(monkeypatch, capsys):
    told = ("RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PMI_SIZE")
    for name in (*told, "ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES", "ROLE_OF_MINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher.goes_on_alone("sample")
    assert capsys.readouterr().err == "note: `sample` runs in one process; the launcher started 2.\n"
    assert not {*told, "WORLD_SIZE"} & {*os.environ}
    assert {"ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES", "ROLE_OF_MINE"} <= {*os.environ}
    assert launcher.goes_on_alone("sample") and capsys.readouterr().err == ""  # where nobody else is


def test_one_process_where_accelerate_was_asked_for_more_is_said(monkeypatch):
    assert launcher.left_alone() == ""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # which it sets for more than one
    assert "--cards 2" in launcher.left_alone()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher.left_alone() == ""


def test_what_a_person_can_mend_ends_with_the_same_code_on_several_cards(capfd):
    assert launcher.launch(2, ["--instance_data_dir", "no such folder", "--class_name", "dog", "--device", "cpu"]) == 2
    assert "no such folder" in capfd.readouterr().err


@pytest.mark.parametrize(("device", "cards", "said"), [
    ("cpu", 1_000_000, "asks for 1000000 cores for CPU processes"),
    ("auto", 3, "asks for 3 cards, and there are 2"),
    ("cuda", 3, "asks for 3 cards, and there are 2"),
])  # fmt: skip
def test_more_cards_than_there_are_start_nothing(monkeypatch, device, cards, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=said):
        launcher.require(cards, device)
    launcher.require(2 if device != "cpu" else 1, device)
