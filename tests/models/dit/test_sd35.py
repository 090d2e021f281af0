"""Stable Diffusion 3.5 as a family: sizes, noise and pictures as diffusers and its training example have them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from trainer.draw.sampler import Look, draw, noise_of
from trainer.models import describe, guess
from trainer.models.dit.sd35 import SD35, fits
from trainer.models.vae import decode_latents, encode_pixels
from trainer.objective.loss import Objective

PROMPTS = ["", "a photo of the dog"]


@pytest.fixture(scope="module")
def parts():
    return SD35.tiny()


def test_the_public_model_has_the_public_parameter_counts_and_no_memory():
    whole = SD35.meta()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in whole.modules().items()}
    assert counts == {
        "transformer": 2_243_171_520,
        "vae": 83_819_683,
        "text": 123_650_304,
        "text_2": 694_659_840,
        "text_3": 4_762_310_656,
    }
    assert 2 * sum(counts.values()) / 1e9 == pytest.approx(SD35.export_gb, abs=0.1)
    assert all(p.is_meta for module in whole.modules().values() for p in module.parameters())
    assert (whole.latents.factor, whole.latents.channels) == (8, 16)
    assert (whole.latents.scale, whole.latents.shift) == (1.5305, 0.0609)
    assert SD35.public().divides == whole.divides == 16
    assert SD35.public().resolution == whole.side == 1024


def test_it_is_told_by_its_name_and_by_its_folder(parts, tmp_path):
    assert guess("stabilityai/stable-diffusion-3.5-medium") is SD35
    SD35.pipeline(parts).save_pretrained(tmp_path)
    family, facts = describe(str(tmp_path))
    assert (family.name, facts.prediction_type, family.resolution) == ("sd35", "flow", 64)
    assert fits({"in_channels": 32}) and not fits(SD35.config("transformer"))


@torch.no_grad()
def test_latents_are_shifted_and_scaled_as_in_the_example(parts):
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = encode_pixels(parts.vae, pixels)
    ours = parts.latents.scaled(mean)
    assert torch.equal(ours, (mean - parts.vae.config.shift_factor) * parts.vae.config.scaling_factor)
    raw = ours / parts.vae.config.scaling_factor + parts.vae.config.shift_factor
    pictures = (torch.cat([parts.vae.decode(one).sample for one in raw.split(1)]) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(decode_latents(parts.vae, ours), pictures, atol=1e-6)


def test_the_objective_is_that_of_diffusers_training_example_on_the_same_noise(parts):
    """Numbers from running the lines of train_dreambooth_sd3.py (diffusers 58eb52c) over this model."""
    latents = parts.latents.scaled(torch.sin(torch.arange(2 * 16 * 8 * 8.0)).view(2, 16, 8, 8))
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = {"text": torch.cos(torch.arange(2 * 333 * 96.0)).view(2, 333, 96)}
    texts["pooled"] = torch.sin(torch.arange(2 * 72.0)).view(2, 72)
    objective = Objective(parts.noise(), prior_loss_weight=0.5)
    noised = objective.noised(latents, noise, torch.tensor([574.0740966796875, 716.3009033203125]))
    assert float(noised.sample.double().square().sum()) == pytest.approx(1183.6980654882334, rel=1e-6)
    with torch.no_grad():
        answer = SD35.call(parts.denoiser, noised.sample, noised.timesteps, texts)
    errors = objective.errors(answer, noised.target, noised.weights)
    total, _, prior = objective.halves(errors, 1)
    assert float(total) == pytest.approx(4.0248894691467285, rel=1e-5)  # --precondition_outputs 0
    assert float(prior) == pytest.approx(2.586984157562256, rel=1e-5)
    total, _, prior = objective.halves(errors * (noised.timesteps / 1000) ** 2, 1)
    assert float(total) == pytest.approx(1.5638360977172852, rel=1e-5)  # --precondition_outputs 1: the same, by s^2
    assert float(prior) == pytest.approx(1.3273478746414185, rel=1e-5)


def test_noise_levels_have_the_examples_distribution(parts):
    """u logit-normal, one of the thousand levels below it; here every level between is drawn."""
    noise = parts.noise()
    levels = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config).timesteps.double()
    shares = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    u = torch.sigmoid(torch.special.ndtri(shares))
    theirs = levels[(u * 1000).long()]
    ours = noise.at(1 - shares)  # the schedule runs down where shares run up
    assert (ours - theirs).abs().max() < 3.0  # a thousandth of the levels, stretched by the shift of 3
    drawn = noise.draw(20_000, torch.Generator().manual_seed(0)).double().sort().values
    assert (drawn - theirs.flip(0).repeat_interleave(2)).abs().mean() < 5.0
    assert noise.weights(drawn, None).eq(1).all()


@torch.no_grad()
@pytest.mark.parametrize("t5", [True, False], ids=["t5", "clip alone"])
def test_the_sampler_draws_the_picture_that_the_pipeline_draws(t5):
    parts = SD35.tiny()
    if not t5:
        parts.text_encoders, parts.tokenizers = parts.text_encoders[:2], parts.tokenizers[:2]
    values = SD35.encode_text(parts, PROMPTS)
    texts = {prompt: {name: values[name][i] for name in values} for i, prompt in enumerate(PROMPTS)}
    look = Look((96, 64), steps=4, guidance=4.0)
    *_, ours = draw(parts, parts.denoiser, texts, PROMPTS[1:], [7], look, "cpu")
    theirs = SD35.pipeline(parts)(
        prompt=PROMPTS[1],
        latents=noise_of([7], (16, 8, 12)),
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=4.0,
        output_type="pt",
    ).images
    assert torch.allclose(decode_latents(parts.vae, ours), theirs, atol=1e-4)
