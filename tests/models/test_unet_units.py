"""Units equal the unmodified model bit for bit, forward and backward, for every family with a UNet."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trainer import units as schedule
from trainer.models import SD1, SD2, SDXL, Parts

PROMPTS = ["a photo of sks dog", "a watercolour of two cats, with hats" + " and shoes" * 40]


def inputs(parts: Parts, text: bool, size: tuple[int, int] = (8, 8)) -> dict[str, Tensor]:
    """Everything one step is given, the text encoders' tokens instead of their result when `text`."""
    generator = torch.Generator().manual_seed(1)
    values = {
        "sample": torch.randn(2, 4, *size, generator=generator),
        "timestep": torch.tensor([3, 870]),
    }
    family = parts.family
    encoded = family.tokens(parts, PROMPTS) if text else family.encode_text(parts, PROMPTS)
    return values | encoded | family.extra_values((70, 64), (0, 3), (64, 64), 2)


def run(units: list[schedule.Unit], given: dict[str, Tensor]) -> dict[str, Tensor]:
    values = dict(given)
    for unit in units:
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    return values


@pytest.fixture(
    scope="module", params=itertools.product((SD1, SD2, SDXL), (1, 2)), ids=lambda p: f"{p[0].name}-{75 * p[1]}"
)
def parts(request) -> Parts:
    """Every family, reading prompts in one window and in two."""
    family, windows = request.param
    return replace(family.tiny(), windows=windows)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_units_in_order_equal_plain_diffusers_bit_for_bit(parts, text, size):
    given = inputs(parts, text, size)
    with torch.no_grad():
        assert torch.equal(
            run(parts.family.units(parts, text), given)["prediction"], parts.family.denoise(parts, given)
        )


@pytest.mark.parametrize("text", [False, True])
def test_gradients_through_units_equal_plain_autograd_bit_for_bit(parts, text):
    given = inputs(parts, text)
    named = {f"{model}.{name}": p for model, m in parts.modules().items() for name, p in m.named_parameters()}

    def gradients(prediction: Tensor) -> dict[str, Tensor]:
        for parameter in named.values():
            parameter.grad = None
        prediction.square().mean().backward()
        return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}

    units = parts.family.units(parts, text)
    plain, split = gradients(parts.family.denoise(parts, given)), gradients(run(units, given)["prediction"])
    assert plain.keys() == split.keys()
    assert all(torch.equal(plain[name], split[name]) for name in plain)
    inside = [name for unit in units for name, _ in unit.module.named_parameters()]
    assert sorted(inside) == sorted(
        plain
    )  # each in exactly one unit, under its full name, and nothing without a gradient


@pytest.mark.parametrize("text", [False, True])
def test_units_are_a_valid_schedule(parts, text):
    units = parts.family.units(parts, text)
    schedule.check(units, set(inputs(parts, text)))
    assert len({unit.name for unit in units}) == len(units)
    assert {unit.name.split(".")[0] for unit in units} >= {"unet"} | ({"text"} if text else set())


def test_running_a_unit_leaves_its_inputs_alone(parts):
    values = inputs(parts, True)
    with torch.no_grad():
        for unit in parts.family.units(parts, True):
            read = [values[name] for name in unit.reads]
            before = [value.clone() for value in read]
            written = unit.run(*read)
            assert all(torch.equal(a, b) for a, b in zip(before, read, strict=True)), unit.name
            values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))


def test_latents_that_do_not_divide_are_refused(parts):
    with torch.no_grad(), pytest.raises(AssertionError, match="multiples of 2"):
        run(parts.family.units(parts), inputs(parts, False, (7, 8)))
