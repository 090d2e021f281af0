"""A share of what was learned: exactly on the line between the base model and the trained one, for weights and adapters."""

import pytest
import torch

from trainer.errors import ConfigError
from trainer.models import SD1, adapters, load_for
from trainer.out.strength import Between
from trainer.policy import Policy
from trainer.settings.config import Lora, Model
from trainer.step.engine import Engine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    SD1.pipeline(SD1.tiny()).save_pretrained(folder)
    return Model(name=str(folder))


def moved(parts):
    """The denoiser's weights after something was learned, in fp32 by full name."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"unet.{name}": p.detach().float() + 0.1 * torch.randn(p.shape, generator=generator)
        for name, p in parts.denoiser.named_parameters()
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.5])
def test_weights_lie_on_the_line_from_the_base_model(model, share):
    parts = load_for(model)
    base, trained = dict(parts.denoiser.named_parameters()), moved(parts)
    kept = {name: value.clone() for name, value in trained.items()}
    found = Between(parts, model).scaled(lambda: iter(trained.items()), share)
    for _ in range(2):  # written once, and once more to compare
        values = dict(found())
        assert values.keys() == trained.keys()
        for name, value in values.items():
            start = base[name.removeprefix("unet.")].detach().float()
            torch.testing.assert_close(value, start + share * (trained[name] - start), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(trained[name], kept[name]) for name in kept), "what was trained stays as it is"


def test_nothing_is_computed_at_full_strength(model):
    parts = load_for(model)
    trained = moved(parts)
    assert Between(parts, model).scaled(trained, 1.0) is trained


def test_an_engine_gets_the_same_weights_unit_by_unit(model):
    parts = load_for(model)
    trained = moved(parts)
    engine = Engine(parts.family.units(parts), Policy(), "cpu")
    engine.load_master(trained)
    expected = dict(Between(parts, model).scaled(trained, 0.5)())
    Between(parts, model).put(engine, 0.5)
    assert all(torch.equal(value, expected[name]) for name, value in engine.master())


def test_adapters_at_half_strength_add_half_of_what_they_add(model):
    parts, settings = load_for(model), Lora(rank=2)
    base = {f"unet.{name}": p.detach().float().clone() for name, p in parts.denoiser.named_parameters()}
    adapters.inject(parts, settings)
    generator = torch.Generator().manual_seed(2)
    learned = {
        name: torch.randn(value.shape, generator=generator) for name, value in adapters.state_dict(parts).items()
    }
    whole = dict(adapters.merged(parts, learned))
    half = dict(adapters.merged(parts, dict(Between(parts, model).scaled(learned, 0.5)())))
    changed = [name for name in base if not torch.equal(whole[name], base[name])]
    assert changed
    for name in changed:
        torch.testing.assert_close(half[name], base[name].lerp(whole[name], 0.5), rtol=1e-4, atol=1e-5)


def test_dora_has_no_path_between_and_says_so(model):
    parts = load_for(model)
    adapters.inject(parts, Lora(rank=2), dora=True)
    with pytest.raises(ConfigError, match="DoRA"):
        Between(parts, model).scaled(adapters.state_dict(parts), 0.5)
