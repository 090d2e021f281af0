"""FLUX.2 klein: units equal the unmodified model bit for bit, forward and backward."""

import pytest
import torch
from diffusers import Flux2KleinPipeline
from small_unet import FusedAdamW
from torch import Tensor

from trainer import units as schedule
from trainer.memory import recompute_kernels
from trainer.models.dit import klein_units
from trainer.models.dit.klein import KLEIN
from trainer.policy import Policy
from trainer.step.engine import Engine

PROMPTS = ["a photo of sks dog", "a watercolour of two cats, with hats" + " and shoes" * 40]
SIZES = [(4, 4), (2, 6)]


@pytest.fixture(scope="module")
def parts():
    return KLEIN.tiny()


@pytest.fixture(scope="module")
def text(parts) -> dict[str, Tensor]:
    return KLEIN.encode_text(parts, PROMPTS)


def given(text: dict[str, Tensor], size: tuple[int, int] = (4, 4), device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 32, *size, generator=generator)
    values = {"sample": sample, "timestep": torch.tensor([3.3, 870.12])} | text
    return {name: value.to(device) for name, value in values.items()}


def run(units: list[schedule.Unit], values: dict[str, Tensor]) -> dict[str, Tensor]:
    values = dict(values)
    for unit in units:
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    return values


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_units_in_order_equal_plain_diffusers_bit_for_bit(parts, text, size):
    values = given(text, size)
    plain = klein_units.call(parts.denoiser, values["sample"], values["timestep"], values)
    assert plain.shape == values["sample"].shape
    assert torch.equal(run(KLEIN.units(parts), values)["prediction"], plain)


def test_gradients_through_units_equal_plain_autograd_bit_for_bit(parts, text):
    values = given(text)
    named = {f"transformer.{name}": p for name, p in parts.denoiser.named_parameters()}

    def gradients(answer) -> dict[str, Tensor]:
        for parameter in named.values():
            parameter.grad = None
        inputs = {name: values[name].clone().requires_grad_() for name in ("sample", "text")}
        answer(values | inputs).square().mean().backward()
        return {name: p.grad.clone() for name, p in (named | inputs).items()}

    units = KLEIN.units(parts)
    plain = gradients(lambda v: klein_units.call(parts.denoiser, v["sample"], v["timestep"], v))
    split = gradients(lambda v: run(units, v)["prediction"])
    assert all(torch.equal(plain[name], split[name]) for name in plain)
    inside = [name for unit in units for name, _ in unit.module.named_parameters()]
    assert sorted(inside) == sorted(named)  # each in exactly one unit, under its full name


@pytest.mark.parametrize(
    "choices",
    [{}, {"checkpointing": "blocks"}, {"checkpointing": "blocks", "stream": "all", "boundaries": "ram"}],
    ids=["everything kept", "recomputed", "everything streamed, boundaries in RAM"],
)
def test_steps_of_the_engine_equal_autograd_with_torch_adamw_bit_for_bit(text, choices):
    """The three modulations get their cotangents from every block, also where each unit comes and goes."""
    values, target = given(text), torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    plain = KLEIN.tiny()
    learns = [p for unit in KLEIN.units(plain) for p in unit.module.parameters()]
    optimizer = FusedAdamW(learns, 1e-2)
    engine = Engine(KLEIN.units(KLEIN.tiny()), Policy(max_grad_norm=0.0, **choices), "cpu")
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        answer = klein_units.call(plain.denoiser, values["sample"], values["timestep"], values)
        (answer.float() - target).pow(2).mean().backward()
        optimizer.step()
        engine.step([values], lambda prediction, _: (prediction.float() - target).pow(2).mean(), lr=1e-2)
    wanted = {f"transformer.{name}": p.detach() for name, p in plain.denoiser.named_parameters()}
    found = dict(engine.master())
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_what_a_unit_reads_stays_as_it_was(parts, text):
    values = given(text)
    units = KLEIN.units(parts)
    schedule.check(units, set(values))
    for unit in units:
        read = [values[name] for name in unit.reads]
        before = [value.clone() for value in read]
        written = unit.run(*read)
        assert all(torch.equal(a, b) for a, b in zip(before, read, strict=True)), unit.name
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))


def test_the_public_model_has_its_parameters_in_units_of_at_most_an_eighth_of_a_billion():
    units = KLEIN.units(KLEIN.meta())
    sizes = {unit.name: sum(p.numel() for p in unit.module.parameters()) for unit in units}
    assert sum(sizes.values()) == 3_875_544_576
    assert max(sizes.values()) == 122_683_648
    assert sizes["transformer.transformer_blocks.0.attn"] == 75_497_984
    assert sizes["transformer.transformer_blocks.4.ff_context"] == 84_934_656


@torch.no_grad()
def test_units_run_on_the_meta_device():
    parts = KLEIN.meta()
    values = {
        "sample": torch.empty(1, 128, 64, 64, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "text": torch.empty(1, 512, 7680, device="meta"),
    }
    assert run(KLEIN.units(parts), values)["prediction"].shape == (1, 128, 64, 64)


@torch.no_grad()
def test_under_16_bits_the_noise_level_keeps_its_precision(parts, text):
    """Levels that bf16 cannot tell apart are told apart."""
    wide = KLEIN.tiny().denoiser.to(torch.bfloat16)
    unit = klein_units.split(wide)[0]
    sample = torch.zeros(2, 32, 4, 4, dtype=torch.bfloat16)
    one, other = unit.run(sample, torch.tensor([870.0, 871.0]))
    assert torch.tensor([870.0, 871.0]).bfloat16().unique().numel() == 1 and not torch.equal(one, other)


@torch.no_grad()
def test_named_values_come_back_from_what_a_pipeline_calls_the_transformer_with(parts, text):
    values, seen = given(text, (2, 6)), {}

    class Listens(torch.nn.Module):
        def forward(self, **arguments):
            seen.update(arguments)
            return (arguments["hidden_states"],)

    echo = klein_units.call(Listens(), values["sample"], values["timestep"], values)
    assert torch.equal(echo, values["sample"])
    back = klein_units.values_of(**{key: value for key, value in seen.items() if key != "return_dict"})
    assert torch.equal(back["sample"], values["sample"]) and torch.equal(back["text"], values["text"])
    assert torch.allclose(back["timestep"], values["timestep"])
    packed = Flux2KleinPipeline._pack_latents(values["sample"])
    assert torch.equal(seen["hidden_states"], packed) and torch.equal(klein_units.answer(values["sample"]), packed)
    assert torch.equal(seen["img_ids"], Flux2KleinPipeline._prepare_latent_ids(values["sample"])[0])
    assert torch.equal(seen["txt_ids"], Flux2KleinPipeline._prepare_text_ids(values["text"])[0])


def test_recompute_kernels_change_no_bit_and_keep_fewer_bytes(text):
    parts, values = KLEIN.tiny(), given(text)
    kept: list[Tensor] = []

    def gradients() -> tuple[list[Tensor], int]:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            answer = klein_units.call(parts.denoiser, values["sample"], values["timestep"], values)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return list(torch.autograd.grad(answer.square().mean(), list(parts.denoiser.parameters()))), sum(
            storages.values()
        )

    plain, before = gradients()
    undo = recompute_kernels.apply(parts.denoiser, Policy(recompute_kernels=True))
    again, during = gradients()
    undo()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert during < 0.85 * before and not any("forward" in part.__dict__ for part in parts.denoiser.modules())
