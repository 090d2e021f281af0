"""The recipe's denoiser and text encoder: trained for their minutes, stopped, and gone on with."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainer.benchmarks.demo import assets, backgrounds, pace, scenes, text, unet
from trainer.benchmarks.demo.pace import Pace
from transformers import CLIPTokenizer

import trainer

SHIPPED = Path(trainer.__file__).parent / "assets/demo/model"
CLASSES = ("cat", "dog")
CONFIG = unet.CONFIG | {"block_out_channels": [8, 16, 16, 16]}


@pytest.fixture(scope="module")
def captions() -> unet.Captions:
    rng = np.random.default_rng(0)
    columns = (len(CLASSES), 3, len(backgrounds.CONTEXTS), scenes.NO_COLOUR + 1)
    shows = np.stack([rng.integers(0, top, 40) for top in columns], 1)
    return unet.Captions(CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer"), CLASSES, shows)


def test_only_the_words_that_captions_use_are_trained(captions):
    ids = set(captions.trained_ids().tolist())
    words = captions.tokenizer.convert_ids_to_tokens(sorted(ids))
    assert {"cat</w>", "dog</w>", "photo</w>"} <= set(words) and len(ids) < 200
    assert not {"zebra</w>"} & set(words)


def test_late_timesteps_are_noisy_ones_and_all_are_in_range():
    rng = np.random.default_rng(0)
    even, late = (unet.timesteps(256, rng, late=x) for x in (False, True))
    for drawn in (even, late):
        assert drawn.min() >= 0 and drawn.max() < 1000
    assert abs(even.mean() - 500) < 20
    assert (late >= 650).mean() >= 0.5 > (even >= 650).mean()


def test_training_takes_its_minutes_and_goes_on_from_its_file(captions, tmp_path, monkeypatch):
    clock = count()  # each look at it is a second
    for module in (pace, text, unet):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)), raising=False)
    monkeypatch.setattr(unet, "CONFIG", CONFIG)
    data = np.random.default_rng(0).standard_normal((40, 4, 16, 16)).astype(np.float32)

    def train(minutes: float) -> dict:
        unet.train(captions, data, tmp_path, Pace(minutes, 1e-3), batch_size=4)
        return torch.load(tmp_path / "state.pt")

    first = train(0.5)
    assert first["step"] >= 1 and first["seconds"] >= 30
    assert train(0.5)["step"] == first["step"]  # its minutes are used up
    second = train(1.0)
    assert second["step"] > first["step"] and second["pictures"] > first["pictures"]
    name = next(name for name in first["model"] if name.endswith("conv_in.weight"))
    assert not torch.equal(first["model"][name], second["model"][name])
    average = assets.average_from(tmp_path / "state.pt", captions)
    assert torch.equal(average.state_dict()[name], second["average"][name])
