"""What stands in for a UNet in pipelines predicts what the UNet would, and owns nothing that a pipeline could move."""

import pytest
import torch

from trainer.models import family
from trainer.policy import Policy
from trainer.step.engine import Engine


def put_together(name: str, policy: Policy):
    """(the module itself, what stands in for it, its inputs as diffusers gives them)"""
    parts = family(name).tiny()
    unet = parts.denoiser.eval().requires_grad_(False)
    config, g = unet.config, torch.Generator().manual_seed(0)
    given = {
        "sample": torch.randn(2, config.in_channels, 16, 16, generator=g),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, generator=g),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        more = {"text_embeds": torch.randn(2, pooled, generator=g), "time_ids": torch.full((2, 6), 128.0)}
        given["added_cond_kwargs"] = more
    with torch.no_grad():
        expected = unet(**given).sample
    engine = Engine(parts.family.units(parts), policy, "cpu")
    return engine.as_module(unet, parts.family), given, expected


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "policy", [Policy(), Policy(checkpointing="blocks", stream="all")], ids=["resident", "streamed"]
)
def test_it_predicts_what_the_module_predicted(name, policy):
    stand_in, given, expected = put_together(name, policy)
    with torch.no_grad():
        assert torch.equal(stand_in(**given).sample, expected)
        assert torch.equal(stand_in(**given, return_dict=False)[0], expected)


def test_it_answers_for_the_configuration_and_the_type_that_pipelines_ask_for():
    stand_in, *_ = put_together("sd1", Policy(weights="24bit", moments="8bit", compute=torch.bfloat16))
    assert stand_in.config.in_channels == 4 and stand_in.device == torch.device("cpu")
    assert stand_in.dtype == torch.bfloat16


def test_a_pipeline_that_moves_or_saves_it_finds_no_weights():
    stand_in, given, expected = put_together("sd1", Policy())
    assert not list(stand_in.parameters()) and not stand_in.state_dict()
    with torch.no_grad():
        assert torch.equal(stand_in.to(torch.float16)(**given).sample, expected)


def test_a_condition_it_does_not_know_is_never_dropped_in_silence():
    stand_in, given, _ = put_together("sd1", Policy())
    stand_in(**given, class_labels=None)
    with pytest.raises(AssertionError, match="class_labels"):
        stand_in(**given, class_labels=torch.zeros(2))
