"""Clip skip reads the state before the last text layer, in the plain forward pass, as units and as kohya's scripts do."""

import pytest
import torch

from trainer.errors import ConfigError
from trainer.events import Exported
from trainer.models import SD1, SD2, SDXL, adapters, clip_skip, load
from trainer.out import export
from trainer.settings.config import Lora

PROMPT = ["a photo of sks dog"]


def test_the_penultimate_state_goes_through_the_final_norm():
    plain, short = SD1.tiny(), clip_skip.shortened(SD1.tiny(), 2)
    ids = plain.family.tokens(plain, PROMPT)["input_ids"]
    encoder = plain.text_encoders[0]
    with torch.no_grad():
        wanted = encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
        assert torch.equal(short.family.encode_text(short, PROMPT)["text"], wanted)
        assert not torch.allclose(plain.family.encode_text(plain, PROMPT)["text"], wanted)
    assert short.digest != plain.digest, "class images drawn with one layer more are others"


def test_units_and_adapters_leave_the_last_layer_out():
    parts = clip_skip.shortened(SD1.tiny(), 2)
    assert not any(
        "layers.1" in unit.name for unit in parts.family.units(parts, text=True) if unit.name.startswith("text")
    )
    adapters.inject(parts, Lora(rank=2), text=True)
    assert not any(name.startswith("text.encoder.layers.1.") for name in adapters.scales(parts))


def test_an_export_is_complete_and_the_model_stays_short(tmp_path):
    parts = clip_skip.shortened(SD1.tiny(), 2)
    formats = ["diffusers", "single_file"]
    events = [e for e in export.write(parts, None, tmp_path, formats, "fp32") if isinstance(e, Exported)]
    assert len(parts.text_encoders[0].encoder.layers) == 1
    for event in events:
        again, wanted = load(event.path).text_encoders[0].state_dict(), SD1.tiny().text_encoders[0].state_dict()
        assert again.keys() == wanted.keys() and all(torch.equal(again[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", [SD2, SDXL], ids=["sd2", "sdxl"])
def test_a_family_that_reads_an_earlier_state_anyway_refuses_it(family):
    with pytest.raises(ConfigError, match="penultimate"):
        clip_skip.shortened(family.tiny(), 2)


def test_without_it_nothing_changes():
    parts = SD1.tiny()
    assert clip_skip.shortened(parts, 1) is parts
