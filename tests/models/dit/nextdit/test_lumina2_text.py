"""Prompts of Lumina Image 2.0 as its pipeline encodes them, layer by layer."""

import pytest
import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.models.dit.nextdit import lumina2_text
from trainer.models.dit.nextdit.lumina2 import LUMINA2
from trainer.models.rows import stacked

PROMPTS = ["a photo of sks dog", "two cats, ein Bild, 猫" + " and a hat" * 90, ""]


@pytest.fixture(scope="module")
def parts():
    return LUMINA2.tiny()


@torch.no_grad()
def test_prompts_become_what_the_pipeline_makes_of_them(parts):
    text, mask, _, _ = LUMINA2.pipeline(parts).encode_prompt(PROMPTS[:2], device="cpu")
    ours = LUMINA2.encode_text(parts, PROMPTS[:2])
    assert torch.equal(ours["text"], text) and torch.equal(ours["mask"], mask.bool())
    assert ours["mask"].sum(1).tolist() == [25, 256]  # cut off at 256


@torch.no_grad()
def test_nothing_said_is_what_the_pipeline_guides_away_from(parts):
    _, _, text, mask = LUMINA2.pipeline(parts).encode_prompt(PROMPTS[0], device="cpu")
    ours = LUMINA2.encode_text(parts, [""])
    assert torch.equal(ours["text"], text) and torch.equal(ours["mask"], mask.bool())
    assert ours["mask"].sum() == 1


@torch.no_grad()
def test_layers_equal_the_encoder_bit_for_bit(parts):
    values = LUMINA2.tokens(parts, PROMPTS)
    expected = lumina2_text.encode(parts.text_encoders, values)
    for unit in LUMINA2.text_units(parts):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    assert all(torch.equal(values[name], expected[name]) for name in lumina2_text.VALUES)


def test_a_batch_is_as_long_as_its_longest_prompt(parts):
    encoded = LUMINA2.encode_text(parts, [PROMPTS[0], ""])
    rows = stacked([{name: value[i] for name, value in encoded.items()} for i in range(2)])
    assert rows["text"].shape == (2, 25, 32) and rows["mask"].sum(1).tolist() == [25, 1]


def test_shapes_are_those_of_the_longest_prompts(parts):
    encoded = LUMINA2.encode_text(parts, PROMPTS)
    shapes = lumina2_text.shapes({"transformer": dict(parts.denoiser.config)}, 3)
    assert {name: (value.shape, value.dtype) for name, value in encoded.items()} == shapes


def test_a_saved_tokenizer_is_read_and_a_missing_one_is_named(parts, tmp_path):
    parts.tokenizers[0].save_pretrained(tmp_path / "tokenizer")
    again = lumina2_text.tokenizers(tmp_path)
    assert torch.equal(
        lumina2_text.tokens(again, PROMPTS)["input_ids"], lumina2_text.tokens(parts.tokenizers, PROMPTS)["input_ids"]
    )
    with pytest.raises(ConfigError, match="no tokenizer"):
        lumina2_text.tokenizers(tmp_path / "tokenizer")
