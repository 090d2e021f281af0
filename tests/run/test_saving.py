"""A checkpoint is written only while everything in it is a number; resuming says where it went back to."""

import pytest
from tiny_run import prepared

from trainer.errors import ConfigError, Diverged
from trainer.events import outcome
from trainer.out import checkpoint
from trainer.run import saving
from trainer.run.habits import Habits
from trainer.run.stages import get_ready


@pytest.fixture
def trained(place, tmp_path):
    return outcome(get_ready(prepared(place, "--output_dir", tmp_path)))[0]


def test_a_checkpoint_says_its_step_size_and_kind_and_older_ones_go(trained):
    for trained.step in (1, 2, 3):
        (saved,) = saving.save(trained, "interval", Habits(save_limit=2))
    assert (saved.step, saved.kind) == (3, "interval") and saved.size_bytes > 0
    assert [checkpoint.step_of(path) for path in checkpoint.found(trained.folder)] == [2, 3]


def test_a_run_killed_before_its_older_checkpoints_went_lets_them_go_when_it_is_resumed_at_its_end(trained):
    for trained.step in (1, 2, 3):
        (saved,) = saving.save(trained, "last", Habits())
    list(saving.resume(trained, checkpoint.folder(trained.folder, 3)))
    before = (checkpoint.folder(trained.folder, 3) / "state.json").read_bytes()
    (again,) = saving.save(trained, "last", Habits(save_limit=1))
    assert again.path == saved.path and checkpoint.found(trained.folder) == [checkpoint.folder(trained.folder, 3)]
    assert (checkpoint.folder(trained.folder, 3) / "state.json").read_bytes() == before, "it is not written again"


def test_weights_that_are_no_numbers_are_not_saved(trained):
    list(saving.save(trained, "interval", Habits()))
    trained.engine.load_master({name: value * float("nan") for name, value in trained.engine.master()})
    trained.step = 5
    with pytest.raises(Diverged, match=r"After step 5 .*unet\..*earlier ones are intact"):
        list(saving.save(trained, "interval", Habits()))
    assert [path.name for path in checkpoint.found(trained.folder)] == ["step-000000"]


def test_a_full_disk_is_noticed_before_anything_is_written(trained, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match="GB free; a checkpoint needs"):
        list(saving.save(trained, "interval", Habits()))
    assert not checkpoint.found(trained.folder)


def test_resuming_says_from_where(trained):
    trained.step = 3
    (saved,) = saving.save(trained, "last", Habits())
    trained.step = 0
    (said,) = saving.resume(trained, checkpoint.found(trained.folder)[-1])
    assert trained.step == 3 and said.text == f"Resumed from {saved.path} after step 3."
