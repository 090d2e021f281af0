"""Lumina Image 2.0 as units is Lumina Image 2.0, for prompts of any lengths."""

import pytest
import torch
from torch import Tensor, nn

from trainer.models.dit.nextdit import lumina2_units
from trainer.models.dit.nextdit.units import through
from trainer.units import check

SMALL = {
    "sample_size": 8,
    "in_channels": 4,
    "hidden_size": 24,
    "num_layers": 2,
    "num_refiner_layers": 2,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "multiple_of": 2,
    "axes_dim_rope": (4, 2, 2),
    "axes_lens": (60, 60, 60),
    "cap_feat_dim": 10,
}
LENGTHS = [(9, 9), (5, 12), (12, 1, 12), (7,)]


def transformer() -> nn.Module:
    """With every parameter random: fresh ones have gates and norms that hide what they do."""
    torch.manual_seed(0)
    model = lumina2_units.CLASS(**SMALL).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(lengths: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows, longest = len(lengths), max(lengths)
    return {
        "sample": torch.randn(rows, 4, *size, generator=generator),
        "timestep": 1000 * torch.rand(rows, generator=generator),
        "text": torch.randn(rows, longest, 10, generator=generator),
        "mask": torch.arange(longest) < torch.tensor(lengths)[:, None],
    }


def plain(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    return lumina2_units.call(model, given["sample"], given["timestep"], given)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@torch.no_grad()
def test_units_in_order_equal_plain_diffusers_bit_for_bit(lengths, size):
    model, given = transformer(), inputs(lengths, size)
    prediction = through(lumina2_units.split(model), given)
    assert prediction.shape == given["sample"].shape
    assert torch.equal(prediction, plain(model, given))


@torch.no_grad()
def test_padding_of_a_prompt_changes_nothing():
    model, given = transformer(), inputs((5, 12))
    changed = given | {"text": torch.where(given["mask"][..., None], given["text"], 7.0)}
    assert torch.equal(through(lumina2_units.split(model), given), through(lumina2_units.split(model), changed))


@torch.no_grad()
def test_a_mask_without_columns_is_a_mask_of_ones():
    model, given = transformer(), inputs((9, 9))
    bare = given | {"mask": given["mask"][:, :0]}
    assert torch.equal(through(lumina2_units.split(model), bare), through(lumina2_units.split(model), given))
    assert torch.equal(plain(model, bare), plain(model, given))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gradients_through_units_equal_plain_autograd_bit_for_bit(lengths):
    model, given = transformer(), inputs(lengths)
    given |= {name: given[name].requires_grad_() for name in ("sample", "text")}

    def gradients(prediction: Tensor) -> dict[str, Tensor]:
        named = dict(model.named_parameters()) | {name: given[name] for name in ("sample", "text")}
        for tensor in named.values():
            tensor.grad = None
        prediction.square().mean().backward()
        return {name: tensor.grad.clone() for name, tensor in named.items() if tensor.grad is not None}

    expected, found = gradients(plain(model, given)), gradients(through(lumina2_units.split(model), given))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_units_are_a_schedule_in_which_every_parameter_stands_once_under_its_full_name():
    model = transformer()
    units = lumina2_units.split(model)
    check(units, {"sample", "timestep", "text", "mask"})
    assert len({unit.name for unit in units}) == len(units)
    names = [name for unit in units for name, _ in unit.module.named_parameters()]
    assert sorted(names) == sorted(f"transformer.{name}" for name, _ in model.named_parameters())


@torch.no_grad()
def test_what_a_pipeline_asks_is_turned_into_values_and_back():
    model, given = transformer(), inputs((5, 12))
    padded = torch.nn.functional.pad(given["text"], (0, 0, 0, 4))
    mask = torch.nn.functional.pad(given["mask"].long(), (0, 4))
    asked = {
        "hidden_states": given["sample"],
        "timestep": 1 - given["timestep"] / 1000,
        "encoder_hidden_states": padded,
        "encoder_attention_mask": mask,
    }
    values = lumina2_units.values_of(**asked, attention_kwargs=None)
    assert values["text"].shape == (2, 12, 10) and torch.equal(values["mask"], given["mask"])
    answered = lumina2_units.answer(through(lumina2_units.split(model), values))
    torch.testing.assert_close(answered, model(**asked, return_dict=False)[0])


@torch.no_grad()
def test_units_run_without_memory():
    model, given = transformer().to("meta"), {name: value.to("meta") for name, value in inputs((5, 12)).items()}
    assert through(lumina2_units.split(model), given).shape == (2, 4, 8, 8)
    assert plain(model, given).shape == (2, 4, 8, 8)  # of which a plan asks


def test_sides_that_no_patches_fill_are_refused():
    with pytest.raises(AssertionError, match="multiples of 2"):
        through(lumina2_units.split(transformer()), inputs((5, 12), (7, 8)))
