"""Checkpoints are whole or absent, found again, pruned, and refused when they do not fit on the disk."""

import json
import shutil

import pytest
import torch

from trainer.errors import ConfigError
from trainer.files.safetensors_stream import PIECE_BYTES
from trainer.out import checkpoint


def save(run, step, value=1.0):
    batches = {
        "generator": torch.Generator().manual_seed(step).get_state(),
        "decks": {"8x8": [1, 0]},
        "class_deck": [2],
    }
    return checkpoint.save(
        run,
        step,
        {"w": torch.full((3,), value)},
        ema={"w": torch.zeros(3)},
        batches=batches,
        facts={"policy": {"a": 1}},
    )


def test_a_checkpoint_comes_back_with_everything_in_it(tmp_path):
    path = save(tmp_path, 7, 2.5)
    torch.manual_seed(99)
    state, engine, ema, batches = checkpoint.load(path)
    assert state["step"] == 7 and state["policy"] == {"a": 1}
    assert engine["w"].tolist() == [2.5] * 3 and ema["w"].tolist() == [0.0] * 3
    assert batches["decks"] == {"8x8": [1, 0]} and batches["class_deck"] == [2]
    assert torch.equal(batches["generator"], torch.Generator().manual_seed(7).get_state())


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
    batches = {"generator": torch.get_rng_state()}
    found = checkpoint.load(checkpoint.save(tmp_path, 1, engine, ema=None, batches=batches, facts={}))[1]
    assert set(found) == set(engine)
    for name, tensor in engine.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_torchs_own_generator_is_put_back(tmp_path):
    torch.manual_seed(5)
    path = save(tmp_path, 1)
    expected = torch.rand(3)
    torch.manual_seed(6)
    checkpoint.load(path)
    assert torch.equal(torch.rand(3), expected)


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
