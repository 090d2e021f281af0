"""Z-Image as units is Z-Image, for prompts of any lengths."""

import pytest
import torch
from torch import Tensor, nn

from trainer.models.dit.nextdit import zimage_units
from trainer.models.dit.nextdit.units import through
from trainer.units import check

SMALL = {
    "in_channels": 4,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 10,
    "axes_dims": [4, 2, 2],
    "axes_lens": [120, 60, 60],
}
LENGTHS = [(9, 9), (5, 12), (40, 1, 12), (7,), (32, 64)]


def transformer() -> nn.Module:
    """With every parameter random: fresh ones have gates and norms that hide what they do."""
    torch.manual_seed(0)
    model = zimage_units.CLASS(**SMALL).eval()
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
    return zimage_units.call(model, given["sample"], given["timestep"], given)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@torch.no_grad()
def test_units_in_order_equal_plain_diffusers_bit_for_bit(lengths, size):
    model, given = transformer(), inputs(lengths, size)
    prediction = through(zimage_units.split(model), given)
    assert prediction.shape == given["sample"].shape
    assert torch.equal(prediction, plain(model, given))


@torch.no_grad()
def test_padding_of_a_prompt_changes_nothing():
    model, given = transformer(), inputs((5, 12))
    changed = given | {"text": torch.where(given["mask"][..., None], given["text"], 7.0)}
    assert torch.equal(through(zimage_units.split(model), given), through(zimage_units.split(model), changed))


@torch.no_grad()
def test_a_mask_without_columns_is_a_mask_of_ones():
    model, given = transformer(), inputs((9, 9))
    bare = given | {"mask": given["mask"][:, :0]}
    assert torch.equal(through(zimage_units.split(model), bare), through(zimage_units.split(model), given))
    assert torch.equal(plain(model, bare), plain(model, given))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gradients_through_units_equal_plain_autograd_bit_for_bit(lengths):
    """Where prompts are filled up to different lengths, the zeros between rows change the order in which three small sums over
    all tokens of the text are made."""
    model, given = transformer(), inputs(lengths)
    given |= {name: given[name].requires_grad_() for name in ("sample", "text")}

    def gradients(prediction: Tensor) -> dict[str, Tensor]:
        named = dict(model.named_parameters()) | {name: given[name] for name in ("sample", "text")}
        for tensor in named.values():
            tensor.grad = None
        prediction.square().mean().backward()
        return {name: tensor.grad.clone() for name, tensor in named.items() if tensor.grad is not None}

    expected, found = gradients(plain(model, given)), gradients(through(zimage_units.split(model), given))
    assert expected.keys() == found.keys()
    sums = {"cap_pad_token", "cap_embedder.0.weight", "cap_embedder.1.bias"}
    other = {name for name in expected if not torch.equal(expected[name], found[name])}
    assert other <= (sums if len({-(-length // 32) for length in lengths}) > 1 else set())
    for name in other:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_units_are_a_schedule_in_which_every_parameter_stands_once_under_its_full_name():
    model = transformer()
    units = zimage_units.split(model)
    check(units, {"sample", "timestep", "text", "mask"})
    assert len({unit.name for unit in units}) == len(units)
    names = [name for unit in units for name, _ in unit.module.named_parameters()]
    assert sorted(names) == sorted(f"transformer.{name}" for name, _ in model.named_parameters())


@torch.no_grad()
def test_what_a_pipeline_asks_is_turned_into_values_and_back():
    model, given = transformer(), inputs((5, 12))
    texts = [row[mask] for row, mask in zip(given["text"], given["mask"], strict=True)]
    asked = (list(given["sample"].unsqueeze(2)), (1000 - given["timestep"]) / 1000, texts)
    values = zimage_units.values_of(*asked, joint_attention_kwargs=None)
    assert torch.equal(values["mask"], given["mask"])
    answered = zimage_units.answer(through(zimage_units.split(model), values))
    expected = model(*asked, return_dict=False)[0]
    assert [each.shape for each in answered] == [each.shape for each in expected] == [(4, 1, 8, 8)] * 2
    torch.testing.assert_close(torch.stack(answered), torch.stack(expected))


@torch.no_grad()
def test_units_run_without_memory():
    model, given = transformer().to("meta"), {name: value.to("meta") for name, value in inputs((5, 12)).items()}
    assert through(zimage_units.split(model), given).shape == (2, 4, 8, 8)
    assert plain(model, given).shape == (2, 4, 8, 8)  # of which a plan asks


def test_sides_that_no_patches_fill_are_refused():
    with pytest.raises(AssertionError, match="multiples of 2"):
        through(zimage_units.split(transformer()), inputs((5, 12), (7, 8)))
