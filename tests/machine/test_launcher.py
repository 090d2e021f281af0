"""A process learns its place from the environment that launchers make, and exit codes come through."""

from trainer.machine import launcher


def test_a_launcher_says_how_many_there_are_and_which_one_this_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (launcher.expected(), launcher.rank()) == (4, 2)


def test_what_a_person_can_mend_ends_with_the_same_code_on_several_cards(capfd):
    assert launcher.launch(2, ["--instance_data_dir", "no such folder", "--class_name", "dog", "--device", "cpu"]) == 2
    assert "no such folder" in capfd.readouterr().err
