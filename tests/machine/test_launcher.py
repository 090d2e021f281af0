"""A process learns its place from the environment that launchers make, and exit codes come through."""

import pytest
import torch

from trainer.errors import ConfigError
from trainer.machine import launcher


def test_a_launcher_says_how_many_there_are_and_which_one_this_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (launcher.expected(), launcher.rank()) == (4, 2)


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
