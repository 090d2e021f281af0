"""Which transformer a model is, and what is said of those that are none of the families."""

import pytest

from trainer.errors import ConfigError
from trainer.models.dit import recognise

TENSOR = ("F16", (9, 3))


@pytest.mark.parametrize("family", recognise.FAMILIES, ids=lambda family: family.name)
def test_a_family_is_known_by_its_configurations_and_by_its_mark(family):
    configs = family.configurations()
    assert recognise.by_configuration("x", configs) is family
    assert recognise.scheduled("x", configs["scheduler"]) == "flow"
    if any("text_encoder" in name for name in family.names.folders.values()):
        assert recognise.by_tensors("x", {family.disk.MARK: TENSOR, "text_encoders.clip_l.x": TENSOR}) is family
    with pytest.raises(ConfigError, match=f"transformer of {family.title} alone"):
        recognise.by_tensors("x", {family.disk.MARK: TENSOR})


@pytest.mark.parametrize(("names", "said"), [
    ({"double_blocks.0.img_attn.qkv.weight": TENSOR}, "diffusion transformer"),
    ({"lora_unet_double_blocks_0.lora_down.weight": TENSOR}, "adapter"),
])  # fmt: skip
def test_a_file_of_no_family_is_refused_by_what_it_is(names, said):
    with pytest.raises(ConfigError, match=said):
        recognise.by_tensors("x", names)


def test_a_folder_of_another_pipeline_is_refused_with_the_families_that_are_known():
    with pytest.raises(ConfigError, match="PixArtSigmaPipeline") as refused:
        recognise.require_pipeline("x", {"_class_name": "PixArtSigmaPipeline", "vae": [], "text_encoder": []})
    assert "Stable Diffusion 1.x" in refused.value.fix
    with pytest.raises(ConfigError, match="PixArtTransformer2DModel"):
        recognise.by_configuration("x", {"transformer": {"_class_name": "PixArtTransformer2DModel"}})


def test_a_unet_is_no_transformer_although_it_has_blocks_of_that_name():
    unet = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert not recognise.among([unet])
    assert recognise.among(["model.diffusion_model.joint_blocks.0.x"])
    assert recognise.among(["double_blocks.0.img_attn.qkv.weight"])
