"""Units of the joint transformer equal diffusers' own forward bit for bit, forward and backward."""

import pytest
import torch
from small_sd35 import config, denoiser, inputs, run
from torch import Tensor, nn

from trainer import units as schedule
from trainer.models.dit import sd35_units
from trainer.policy import Policy
from trainer.step.engine import Engine


def gradients(model: nn.Module, prediction: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {f"transformer.{name}": parameter for name, parameter in model.named_parameters()}
    tensors = named | {name: given[name] for name in ("text", "pooled")}
    found = torch.autograd.grad(prediction.square().mean(), list(tensors.values()))
    return dict(zip(tensors, found, strict=True))


@pytest.mark.parametrize("largest", [0, sd35_units.LARGEST], ids=["halves", "whole"])
@pytest.mark.parametrize("t5", [True, False], ids=["t5", "clip alone"])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (24, 2)])
def test_units_equal_the_forward_of_diffusers_bit_for_bit(largest, t5, size):
    model, given = denoiser(), inputs(size, t5)
    units = sd35_units.split(model, largest)
    schedule.check(units, set(given))
    with torch.no_grad():
        expected = sd35_units.call(model, given["sample"], given["timestep"], given)
        assert torch.equal(run(units, given)["prediction"], expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("changes", [{}, {"dual_attention_layers": [], "qk_norm": None}], ids=["3.5", "3"])
@pytest.mark.parametrize("largest", [0, sd35_units.LARGEST], ids=["halves", "whole"])
def test_gradients_through_units_equal_plain_autograd_bit_for_bit(largest, changes):
    model, given = denoiser(**changes), inputs()
    given |= {name: given[name].requires_grad_() for name in ("text", "pooled")}
    plain = gradients(model, sd35_units.call(model, given["sample"], given["timestep"], given), given)
    split = gradients(model, run(sd35_units.split(model, largest), given)["prediction"], given)
    assert all(torch.equal(plain[name], split[name]) for name in plain)
    assert all(plain[name].any() for name in ("text", "pooled", "transformer.pos_embed.proj.weight"))


@pytest.mark.parametrize("checkpointing", ["off", "blocks", "selective"])
def test_a_step_of_the_engine_takes_the_gradients_of_plain_autograd(checkpointing):
    model, given = denoiser(), inputs()
    loss = sd35_units.call(model, given["sample"], given["timestep"], given).square().mean()
    named = list(model.named_parameters())
    expected = torch.stack([g.square().sum() for g in torch.autograd.grad(loss, [p for _, p in named])]).sum().sqrt()
    policy = Policy(weights="fp32", moments="fp32", compute=torch.float32, checkpointing=checkpointing)
    engine = Engine(sd35_units.split(model, 0), policy, "cpu")
    before = {name: value.clone() for name, value in engine.master()}
    result = engine.step([given], lambda prediction, i: prediction.square().mean(), lr=1e-3)
    assert torch.equal(result.losses[0, 0], loss.detach())
    torch.testing.assert_close(result.grad_norm, expected, rtol=1e-5, atol=0)
    after = dict(engine.master())
    assert sorted(before) == sorted(f"transformer.{name}" for name, _ in named)
    assert all((before[name] != after[name]).any() for name in before if ".23." not in name)


def test_every_parameter_is_in_one_unit_under_its_full_name():
    model = denoiser()
    for largest in (0, sd35_units.LARGEST):
        units = sd35_units.split(model, largest)
        inside = [name for unit in units for name, _ in unit.module.named_parameters()]
        assert sorted(inside) == sorted(f"transformer.{name}" for name, _ in model.named_parameters())
        assert len({unit.name for unit in units}) == len(units)


def test_values_of_a_pipelines_call_give_its_answer_back():
    model, given = denoiser(), inputs()
    call = {"hidden_states": given["sample"], "timestep": torch.tensor(400.0), "encoder_hidden_states": given["text"]}
    call |= {"pooled_projections": given["pooled"], "joint_attention_kwargs": None}
    values = sd35_units.values_of(**call)
    with torch.no_grad():
        expected = model(**call | {"timestep": torch.tensor([400.0, 400.0])}, return_dict=False)[0]
        assert torch.equal(run(sd35_units.split(model), values)["prediction"], expected)


def test_the_public_model_has_the_published_size_and_its_large_blocks_are_two_units():
    with torch.device("meta"):
        model = sd35_units.CLASS(**config("transformer"))
    units = sd35_units.split(model)
    sizes = [sum(parameter.numel() for parameter in unit.module.parameters()) for unit in units]
    assert sum(sizes) == sum(parameter.numel() for parameter in model.parameters()) == 2_243_171_520
    assert max(sizes) < sd35_units.LARGEST
    assert len(units) == 3 + 13 * 2 + 11 + 1
    given = {name: value.to("meta") for name, value in inputs((128, 96)).items()}
    given |= {"text": torch.empty(2, 77, 2048, device="meta"), "pooled": torch.empty(2, 2048, device="meta")}
    assert run(units, given)["prediction"].shape == given["sample"].shape


def test_the_table_of_places_stays_where_it_is():
    model = denoiser()
    held = {buffer.data_ptr() for unit in sd35_units.split(model) for buffer in unit.module.buffers()}
    assert model.pos_embed.pos_embed.data_ptr() not in held


def test_a_picture_larger_than_the_table_is_refused():
    with torch.no_grad(), pytest.raises(AssertionError, match="more than 24 pixels"):
        run(sd35_units.split(denoiser()), inputs((26, 8)))
