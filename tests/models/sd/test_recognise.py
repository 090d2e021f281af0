"""Which Stable Diffusion a model is, from its configurations or from the names and shapes of its tensors alone."""

import pytest

from trainer.errors import ConfigError
from trainer.models.sd import recognise
from trainer.models.sd.ldm import UNET
from trainer.models.sd.sd1 import DEMO, SD1
from trainer.models.sd.sd2 import SD2
from trainer.models.sd.sdxl import SDXL

FAMILIES = [SD1, SD2, SDXL]


def tensors(width, channels=4):
    """As much of a checkpoint's header as tells what it is."""
    return {
        f"{UNET}input_blocks.0.0.weight": ("F16", (320, channels, 3, 3)),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": ("F16", (1280, width)),
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_public_model_is_known_by_its_own_configurations(family):
    assert recognise.by_configuration("x", family.configurations()) is family


@pytest.mark.parametrize(("width", "family"), [(768, SD1), (1024, SD2), (2048, SDXL)])
def test_a_checkpoint_is_known_by_the_width_of_the_text_that_it_reads(width, family):
    assert recognise.by_tensors("x", tensors(width)) is family


def test_a_narrow_one_is_the_built_in_model_or_its_offspring():
    configs = SD1.configurations()
    configs["unet"]["block_out_channels"] = [32, 64]
    assert recognise.by_configuration("x", configs) is DEMO


@pytest.mark.parametrize(("names", "said"), [
    (tensors(768, channels=9), "inpainting"),
    (tensors(1280), "refiner"),
    (tensors(512), "text width"),
    ({"lora_te_text_model.lora_down.weight": ("F16", (4, 4))}, "adapter"),
    ({"down_blocks.0.resnets.0.conv1.weight": ("F16", (4, 4))}, "one part"),
    ({"something.else": ("F16", (4, 4))}, "no Stable Diffusion"),
])  # fmt: skip
def test_what_is_no_text_to_image_model_is_refused_by_what_it_is_instead(names, said):
    with pytest.raises(ConfigError, match=said):
        recognise.by_tensors("x", names)


def test_only_a_base_model_of_sd_2_has_other_sides_than_its_family():
    for family, prediction, side in ((SD2, "epsilon", 64), (SD2, "v_prediction", 96), (SDXL, "epsilon", 128)):
        configs = family.configurations()
        recognise.base_is_smaller(family, prediction, configs)
        assert configs["unet"]["sample_size"] == side
