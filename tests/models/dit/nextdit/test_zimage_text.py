"""Prompts of Z-Image as its pipeline encodes them, layer by layer."""

import pytest
import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.models.dit.nextdit import zimage_text
from trainer.models.dit.nextdit.zimage import ZIMAGE
from trainer.models.rows import stacked

PROMPTS = ["a photo of sks dog", "two cats, ein Bild, 猫" + " and a hat" * 190, ""]


@pytest.fixture(scope="module")
def parts():
    return ZIMAGE.tiny()


@torch.no_grad()
def test_prompts_become_what_the_pipeline_makes_of_them(parts):
    texts, _ = ZIMAGE.pipeline(parts).encode_prompt(list(PROMPTS), device="cpu")
    ours = ZIMAGE.encode_text(parts, PROMPTS)
    assert ours["mask"].sum(1).tolist() == [len(text) for text in texts]
    assert len(texts[1]) == 512  # cut off
    assert all(torch.equal(row[mask], text) for row, mask, text in zip(ours["text"], ours["mask"], texts, strict=True))


@torch.no_grad()
def test_layers_equal_the_encoder_bit_for_bit(parts):
    values = ZIMAGE.tokens(parts, PROMPTS)
    expected = zimage_text.encode(parts.text_encoders, values)
    for unit in ZIMAGE.text_units(parts):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    assert all(torch.equal(values[name], expected[name]) for name in zimage_text.VALUES)


def test_a_batch_is_as_long_as_its_longest_prompt(parts):
    encoded = ZIMAGE.encode_text(parts, [PROMPTS[0], ""])
    rows = stacked([{name: value[i] for name, value in encoded.items()} for i in range(2)])
    lengths = encoded["mask"].sum(1).tolist()
    assert lengths[1] < lengths[0] == rows["text"].shape[1] and rows["mask"].sum(1).tolist() == lengths


def test_shapes_are_those_of_the_longest_prompts(parts):
    encoded = ZIMAGE.encode_text(parts, PROMPTS)
    shapes = zimage_text.shapes({"transformer": dict(parts.denoiser.config)}, 3)
    assert {name: (value.shape, value.dtype) for name, value in encoded.items()} == shapes


def test_a_saved_tokenizer_is_read_and_a_missing_one_is_named(parts, tmp_path):
    parts.tokenizers[0].save_pretrained(tmp_path / "tokenizer")
    again = zimage_text.tokenizers(tmp_path)
    assert torch.equal(
        zimage_text.tokens(again, PROMPTS)["input_ids"], zimage_text.tokens(parts.tokenizers, PROMPTS)["input_ids"]
    )
    with pytest.raises(ConfigError, match="no tokenizer"):
        zimage_text.tokenizers(tmp_path / "tokenizer")
