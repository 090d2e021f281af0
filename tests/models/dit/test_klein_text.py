"""What FLUX.2 klein makes of prompts is what its pipeline makes of them."""

import pytest
import torch
from torch import Tensor

from trainer.models.dit import klein_text
from trainer.models.dit.klein import KLEIN

PROMPTS = ["", "a photo of sks dog", "a watercolour of two cats, with hats" + " and shoes" * 200]


@pytest.fixture(scope="module")
def parts():
    return KLEIN.tiny()


@torch.no_grad()
def test_prompts_of_many_lengths_become_what_the_pipeline_makes_of_them_bit_for_bit(parts):
    ours = KLEIN.encode_text(parts, PROMPTS)
    theirs, _ = KLEIN.pipeline(parts).encode_prompt(PROMPTS, device="cpu")
    assert ours.keys() == set(klein_text.VALUES) and torch.equal(ours["text"], theirs)
    shape, _ = klein_text.shapes({"transformer": parts.denoiser.config}, 3)["text"]
    assert theirs.shape == shape


@torch.no_grad()
def test_layer_by_layer_they_become_the_same_bit_for_bit(parts):
    values = KLEIN.tokens(parts, PROMPTS)
    assert values["mask"].sum(1).tolist() == sorted(values["mask"].sum(1).tolist()) and values["mask"].shape == (3, 512)
    for unit in KLEIN.text_units(parts):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    assert torch.equal(values["text"], KLEIN.encode_text(parts, PROMPTS)["text"])


def test_nothing_is_run_that_lies_behind_the_last_layer_that_is_read(parts):
    held = {name for unit in KLEIN.text_units(parts) for name, _ in unit.module.named_parameters()}
    assert any(name.startswith("text.model.layers.26.") for name in held)
    assert not any(name.startswith(("text.model.layers.27.", "text.lm_head", "text.model.norm")) for name in held)


def test_text_encoders_are_not_trained(parts):
    assert not KLEIN.trains_text
    with pytest.raises(AssertionError, match="not trained"):
        KLEIN.units(parts, text=True)
