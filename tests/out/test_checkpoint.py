"""Checkpoints are whole or absent, found again, pruned, and refused when they do not fit on the disk."""

import json
import shutil

import pytest
import torch

from trainer.errors import ConfigError
from trainer.files.safetensors_stream import PIECE_BYTES
from trainer.out import checkpoint


def state(step=1, engine=None, **more):
    batches = {
        "generator": torch.Generator().manual_seed(step).get_state(),
        "decks": {"8x8": [1, 0]},
        "class_deck": [2],
    }
    engine = {"w": torch.ones(3)} if engine is None else engine
    generators = {"torch": torch.Generator().manual_seed(50 + step).get_state()}
    return checkpoint.State(
        step, engine, more.get("average"), batches, generators, more.get("facts", {"policy": {"a": 1}})
    )


def save(run, step):
    return checkpoint.save(run, state(step))


def test_a_checkpoint_comes_back_with_everything_in_it(tmp_path):
    saved = state(7, {"w": torch.full((3,), 2.5)}, average={"w": torch.zeros(3)})
    found = checkpoint.load(checkpoint.save(tmp_path, saved))
    assert found.step == 7 and found.facts["policy"] == {"a": 1}
    assert found.engine["w"].tolist() == [2.5] * 3 and found.average["w"].tolist() == [0.0] * 3
    assert found.batches["decks"] == {"8x8": [1, 0]} and found.batches["class_deck"] == [2]
    assert torch.equal(found.batches["generator"], saved.batches["generator"])
    assert found.generators.keys() == {"torch"}
    assert torch.equal(found.generators["torch"], saved.generators["torch"])
    assert checkpoint.load(save(tmp_path, 8)).average is None


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path):
    kinds = (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.uint8,
        torch.int8,
        torch.int64,
        torch.float64,
        torch.bool,
    )
    engine = {str(kind): (torch.arange(7) % 2).to(kind) for kind in kinds}
    engine |= {
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0),
        "channels last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "a part": torch.arange(10.0)[2:5],
        "longer than a piece": torch.arange(PIECE_BYTES // 4 + 5, dtype=torch.int32),
    }
    found = checkpoint.load(checkpoint.save(tmp_path, state(1, engine))).engine
    assert set(found) == set(engine)
    for name, tensor in engine.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_reading_a_checkpoint_changes_nothing_outside_it(tmp_path):
    path = save(tmp_path, 1)
    torch.manual_seed(6)
    expected = torch.rand(3)
    torch.manual_seed(6)
    checkpoint.load(path)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_number_is_named_but_for_the_engines_own_counters():
    nan = torch.tensor([1.0, float("nan")])
    assert state(1, {"engine.norm": nan, "a": torch.ones(2), "b": nan, "c": nan}).broken() == "b"
    assert state(1, {"engine.norm": nan, "a": torch.tensor([1])}).broken() == ""


def test_a_half_written_checkpoint_is_not_found(tmp_path):
    whole = save(tmp_path, 3)
    half = tmp_path / "step-000009"
    shutil.copytree(whole, half)
    (half / "state.json").unlink()
    assert checkpoint.locate(tmp_path, "latest") == whole


def test_the_latest_of_an_empty_run_is_none_but_a_wrong_name_is_an_error(tmp_path):
    assert checkpoint.locate(tmp_path, "latest") is None
    save(tmp_path, 5)
    assert checkpoint.locate(tmp_path, "checkpoint-000005") == tmp_path / "step-000005"
    with pytest.raises(ConfigError, match="step-000005"):
        checkpoint.locate(tmp_path, "step-000006")


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    assert checkpoint.prune(tmp_path, 2, keep=paths[0]) == [paths[1]]
    assert checkpoint.found(tmp_path) == [paths[0], paths[2], paths[3]]
    assert checkpoint.prune(tmp_path, None) == []


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="free"):
        checkpoint.require_space(tmp_path / "not" / "yet", 1 << 60, "a checkpoint")


def test_another_format_is_refused_by_name(tmp_path):
    path = save(tmp_path, 1)
    (path / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="99"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["checkpoint-4", "step-4", "step-000004", "checkpoint-000004"])
def test_a_checkpoint_answers_to_the_names_that_others_give_it(tmp_path, name):
    saved = save(tmp_path, 4)
    assert checkpoint.locate(tmp_path, name) == saved


def test_an_earlier_runs_checkpoints_are_set_aside_whole_each_time_into_a_folder_of_their_own(tmp_path):
    assert checkpoint.set_aside(tmp_path, "guard") is None and not any(tmp_path.iterdir())
    for expected in ("earlier-1", "earlier-2"):
        save(tmp_path, 800)
        (tmp_path / "guard").mkdir()
        (tmp_path / "model").mkdir(exist_ok=True)
        place = checkpoint.set_aside(tmp_path, "guard")
        assert place == tmp_path / expected and not checkpoint.found(tmp_path)
        assert {path.name for path in place.iterdir()} == {"step-000800", "guard"}
        assert checkpoint.load(checkpoint.locate(tmp_path, str(place / "step-000800"))).step == 800
    assert (tmp_path / "model").is_dir()


DAMAGE = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["engine.safetensors", "ema.safetensors", "random.safetensors", "state.json"])
def test_a_damaged_file_is_named_with_the_newest_checkpoint_that_is_whole(tmp_path, name, kind):
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, state(step, average={"w": torch.zeros(3)}))
    newest, before = tmp_path / "step-000006" / name, tmp_path / "step-000004" / name
    assert checkpoint.damage(newest.parent) == ""
    checkpoint.require_whole(newest.parent)
    newest.write_bytes(DAMAGE[kind](newest.read_bytes()))
    assert checkpoint.damage(newest.parent) == name
    with pytest.raises(ConfigError) as error:
        checkpoint.require_whole(newest.parent)
    assert name in error.value.what
    if "is not JSON" not in error.value.what:
        assert error.value.fix == "step-000004 is whole: --resume_from_checkpoint step-000004"
    before.write_bytes(DAMAGE[kind](before.read_bytes()))
    if name != "state.json":
        with pytest.raises(ConfigError, match="step-000002"):
            checkpoint.require_whole(newest.parent)


def test_a_missing_file_and_one_of_another_checkpoint_are_damage(tmp_path):
    first, second = save(tmp_path, 2), checkpoint.save(tmp_path, state(4, {"w": torch.zeros(3)}))
    shutil.copy(first / "engine.safetensors", second / "engine.safetensors")
    assert checkpoint.damage(second) == "engine.safetensors"
    (first / "random.safetensors").unlink()
    assert checkpoint.damage(first) == "random.safetensors"


@pytest.mark.parametrize("change", [{"step": -5}, {"step": 10**9}, {"step": "4"}, {"step": True}, {"model": "0000"}])
def test_a_state_that_was_written_over_is_refused(tmp_path, change):
    path = save(tmp_path, 4)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(json.dumps(json.loads(text) | change))
    with pytest.raises(ConfigError, match=r"state\.json is (damaged|not)"):
        checkpoint.load(path)


def test_a_checkpoint_of_an_older_version_says_no_checksums_and_is_read(tmp_path):
    path = save(tmp_path, 4)
    older = json.loads((path / "state.json").read_text())
    del older["files"], older["checksum"]
    (path / "state.json").write_text(json.dumps(older))
    assert checkpoint.damage(path) == "" and checkpoint.load(path).step == 4
    (path / "engine.safetensors").write_bytes(b"")
    assert checkpoint.damage(path) == "engine.safetensors"


def test_what_a_killed_run_had_finished_is_used_and_what_it_had_not_is_removed(tmp_path):
    first, second = save(tmp_path, 2), save(tmp_path, 4)
    second.rename(tmp_path / ".step-000004.99999.part")  # written, and killed before it got its name
    shutil.copytree(first, tmp_path / ".step-000006.99999.part")
    (tmp_path / ".step-000006.99999.part" / "engine.safetensors").write_bytes(b"half")
    assert checkpoint.locate(tmp_path, "latest") == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004"]


def test_a_checkpoint_that_was_set_aside_is_found_again(tmp_path):
    only = save(tmp_path, 6)
    only.rename(tmp_path / ".step-000006.99999.aside")  # its successor was to take its name, and the run was killed
    assert checkpoint.locate(tmp_path, "latest") == only and checkpoint.damage(only) == ""


def test_a_folder_in_which_two_runs_lie_mixed_shows_the_one_that_wrote_last_and_prunes_that_one_only(tmp_path):
    for step, run, written in ((2, "new", 20.0), (4, "old", 10.0), (8, "old", 11.0), (12, None, None)):
        place = checkpoint.folder(tmp_path, step)
        place.mkdir()
        said = {"run": run, "written": written} if run else {}
        (place / "state.json").write_text(json.dumps({"step": step} | said))
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path)] == [12, 4, 8, 2]
    assert checkpoint.locate(tmp_path, "latest").name == "step-000002"
    assert checkpoint.prune(tmp_path, 1) == []
    place = checkpoint.folder(tmp_path, 1)
    place.mkdir()
    (place / "state.json").write_text(json.dumps({"step": 1, "run": "new", "written": 19.0}))
    assert checkpoint.prune(tmp_path, 1) == [place] and len(checkpoint.found(tmp_path)) == 4


def test_a_clock_that_was_set_back_reorders_no_run_and_a_damaged_newest_one_is_not_passed_over(tmp_path):
    for step, written in ((2, 30.0), (4, 10.0), (6, 11.0)):
        place = checkpoint.folder(tmp_path, step)
        place.mkdir()
        (place / "state.json").write_text(json.dumps({"step": step, "run": "a", "written": written}))
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path)] == [2, 4, 6]
    (tmp_path / "step-000006" / "state.json").write_text("{")
    assert checkpoint.locate(tmp_path, "latest").name == "step-000006", (
        "it is refused by name, with the one that is whole"
    )


def test_checkpoints_after_the_one_gone_on_from_are_left_behind_with_their_settings(tmp_path):
    for step in (4, 8, 12):
        save(tmp_path, step)
    (tmp_path / "config.toml").write_text("[train]")
    left = checkpoint.leave_behind(tmp_path / "step-000004")
    assert left == tmp_path / "left-after-000004"
    assert sorted(path.name for path in left.iterdir()) == ["config.toml", "step-000008", "step-000012"]
    assert checkpoint.locate(tmp_path, "latest") == tmp_path / "step-000004"
    assert checkpoint.leave_behind(tmp_path / "step-000004") is None, "nothing more to leave"
    save(tmp_path, 6)
    assert checkpoint.leave_behind(tmp_path / "step-000004").name == "left-after-000004-2"
