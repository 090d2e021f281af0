"""Z-Image as a family: sizes, noise and pictures as diffusers and its training example have them."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from small_unet import FusedAdamW

from trainer.draw.sampler import Look, draw, noise_of
from trainer.models import describe, guess
from trainer.models.dit.nextdit import zimage_units
from trainer.models.dit.nextdit.zimage import ZIMAGE, fits
from trainer.models.rows import stacked
from trainer.models.vae import decode_latents
from trainer.objective.loss import Objective
from trainer.policy import Policy
from trainer.step.engine import Engine


@pytest.fixture(scope="module")
def parts():
    return ZIMAGE.tiny()


def test_the_public_model_has_the_public_parameter_counts_and_no_memory():
    whole = ZIMAGE.meta()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in whole.modules().items()}
    assert counts == {"transformer": 6_154_908_736, "vae": 83_819_683, "text": 4_022_468_096}
    assert 2 * sum(counts.values()) / 1e9 == pytest.approx(ZIMAGE.export_gb, abs=0.1)
    assert all(p.is_meta for module in whole.modules().values() for p in module.parameters())
    assert (whole.latents.factor, whole.latents.channels) == (8, 16)
    assert ZIMAGE.public().divides == whole.divides == 16


def test_it_is_told_by_its_name_and_by_its_folder(parts, tmp_path):
    assert guess("Tongyi-MAI/Z-Image") is ZIMAGE
    ZIMAGE.pipeline(parts).save_pretrained(tmp_path)
    family, facts = describe(str(tmp_path))
    assert family.name == "zimage" and facts.prediction_type == "flow" and family.resolution == 1024
    assert fits({"siglip_feat_dim": 8}) and fits({"in_channels": 4}) and not fits(ZIMAGE.config("transformer"))


def test_the_objective_is_that_of_diffusers_training_example_on_the_same_noise(parts):
    """Numbers from running the lines of train_dreambooth_lora_z_image.py (diffusers 58eb52c) over this model."""
    raw = torch.sin(torch.arange(2 * 16 * 8 * 8.0)).view(2, 16, 8, 8)
    text = torch.cos(torch.arange(2 * 12 * 32.0)).view(2, 12, 32)
    mask = torch.arange(12) < torch.tensor([[7], [12]])
    objective = Objective(parts.noise(size=(64, 64)), prior_loss_weight=0.5)
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = objective.noised(parts.latents.scaled(raw), noise, torch.tensor([933.333251953125, 400.0]))
    assert float(noised.sample.double().square().sum()) == pytest.approx(1131.108737750471, rel=1e-6)
    with torch.no_grad():
        answer = ZIMAGE.call(parts.denoiser, noised.sample, noised.timesteps, {"text": text, "mask": mask})
    errors = objective.errors(answer, noised.target, noised.weights)
    total, _, prior = objective.halves(errors, 1)
    assert float(total) == pytest.approx(2.2176318168640137, rel=1e-5)
    assert float(prior) == pytest.approx(1.4436793327331543, rel=1e-5)


def test_noise_levels_are_drawn_as_in_the_example(parts):
    """Which takes one of a thousand, where every number between is drawn here."""
    noise = parts.noise(size=(1024, 1024))
    example = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config)
    shares = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    theirs = example.timesteps[(shares * 1000).long()]
    assert (noise.at(1 - shares) - theirs).abs().max() <= 6.0  # its steps are up to so wide
    assert noise.weights(theirs, None).eq(1).all()


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_pictures_walk_down_the_levels_of_the_pipeline(parts, size):
    pipeline = ZIMAGE.pipeline(parts)
    pipeline(
        prompt="a dog", guidance_scale=0.0, width=size[0], height=size[1], num_inference_steps=3, output_type="latent"
    )
    assert torch.equal(parts.noise(size=size).sampler(3).sigmas, pipeline.scheduler.sigmas)


@torch.no_grad()
def test_the_sampler_draws_the_picture_that_the_pipeline_draws(parts):
    prompts = ["", "a photo of sks dog"]
    rows = ZIMAGE.encode_text(parts, prompts)
    texts = {prompt: {name: rows[name][i] for name in rows} for i, prompt in enumerate(prompts)}
    look = Look((96, 64), steps=4, guidance=4.0)
    *_, ours = draw(parts, parts.denoiser, texts, prompts[1:], [7], look, "cpu")
    theirs = ZIMAGE.pipeline(parts)(
        prompt=prompts[1],
        latents=noise_of([7], (16, 8, 12)),
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=3.0,  # it counts from the guided prediction
        output_type="pt",
    ).images
    assert torch.allclose(decode_latents(parts.vae, ours), theirs, atol=1e-4)


RESIDENCIES = {
    "everything kept": Policy(),
    "everything streamed, boundaries in RAM": Policy(checkpointing="blocks", stream="all", boundaries="ram"),
}


@pytest.mark.parametrize("policy", RESIDENCIES.values(), ids=RESIDENCIES)
def test_steps_through_the_engine_equal_plain_autograd_bit_for_bit(policy):
    """Two steps of AdamW over all parameters, rows of two lengths."""
    generator = torch.Generator().manual_seed(1)
    rows = [{"text": torch.randn(12, 32, generator=generator), "mask": torch.arange(12) < length} for length in (5, 11)]
    given = stacked(rows) | {
        "sample": torch.randn(2, 16, 8, 8, generator=generator),
        "timestep": 1000 * torch.rand(2, generator=generator),
    }
    plain, streamed = ZIMAGE.tiny(), ZIMAGE.tiny()
    target = torch.randn(2, 16, 8, 8, generator=generator)

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return (prediction - target).square().mean()

    optimizer = FusedAdamW(list(plain.denoiser.parameters()), 1e-2)
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(zimage_units.call(plain.denoiser, given["sample"], given["timestep"], given))
        value.backward()
        optimizer.step()
        expected.append(value.detach())
    engine = Engine(ZIMAGE.units(streamed), replace(policy, max_grad_norm=0.0), "cpu")
    found = [engine.step([given], lambda prediction, _: loss(prediction), lr=1e-2).losses[0, 0] for _ in range(2)]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    weights = dict(engine.master())
    assert all(torch.equal(weights[f"transformer.{name}"], p) for name, p in plain.denoiser.named_parameters())
