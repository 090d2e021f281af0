"""A model that is none is said in one line, before anything is drawn from it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import models
from trainer.errors import ConfigError
from trainer.models import SD1, sound


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "sd1"
    SD1.pipeline(SD1.tiny()).save_pretrained(place)
    return place


@pytest.fixture
def model(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def look(place):
    family, facts = models.describe(str(place))
    models.check_weights(facts)
    family.build_meta(facts)
    return models.load(str(place), dtype=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers_are_found_when_they_are_read(model, part, value):
    (path,) = (model / part).glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name] = weights[name].clone()
    weights[name].view(-1)[-1] = value
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"{part.replace('_encoder', '')}.* holds (NaN|infinity)") as error:
        look(model)
    assert "learning_rate" not in str(error.value)


JSON = {
    "index": ("model_index.json", "{"),
    "index list": ("model_index.json", "[]"),
    "index words": ("model_index.json", '{"unet": 1, "text_encoder": 2}'),
    "unet list": ("unet/config.json", "[]"),
    "unet empty": ("unet/config.json", "{}"),
    "unet words": ("unet/config.json", '{"in_channels": 4, "out_channels": 4, "block_out_channels": "x"}'),
    "vae": ("vae/config.json", '{"block_out_channels": 3}'),
    "text": ("text_encoder/config.json", '{"hidden_size": "wide"}'),
    "scheduler": ("scheduler/scheduler_config.json", "nul\0"),
    "betas": ("scheduler/scheduler_config.json", '{"beta_schedule": "scaled_linear", "beta_start": "x"}'),
    "vocabulary": ("tokenizer/vocab.json", "{}"),
    "tokenizer": ("tokenizer/tokenizer_config.json", "["),
}


@pytest.mark.parametrize("kind", JSON)
def test_broken_json_beside_a_model_is_one_line(model, kind):
    name, text = JSON[kind]
    (model / name).write_text(text)
    try:
        parts = look(model)
    except ConfigError as error:
        assert error.what.count("\n") == 0 and error.fix
    else:
        assert parts is not None


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
@pytest.mark.parametrize(
    "name", ["tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/generation_config.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_library_is_left_waiting_for_a_pipe_or_device_beside_a_model(model, name, kind):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name) if kind == "pipe" else (model / name).symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=f"{Path(name).name} cannot be read: a {kind}") as error:
        look(model)
    assert error.value.fix == "copy or download the model again"


def test_a_configuration_that_lacks_a_setting_gets_the_families_own_or_a_line(model):
    path = model / "unet" / "config.json"
    config = json.loads(path.read_text())
    for name in list(config):
        path.write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        try:
            family, facts = models.describe(str(model))
            family.build_meta(facts)
        except ConfigError as error:
            assert "unet" in error.what or str(model) in error.what


def test_numbers_are_left_as_they_are():
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    sound.require_numbers({"unet": module}, "here")
    assert torch.equal(module.weight, before)
