"""FLUX.2 klein as a family: sizes, latents, noise and pictures as diffusers and its training example have them."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from trainer.draw.sampler import Look, draw, noise_of
from trainer.errors import ConfigError
from trainer.models import describe, guess
from trainer.models.dit.klein import KLEIN, fits
from trainer.models.vae import decode_latents, encode_pixels
from trainer.objective.loss import Objective
from trainer.policy import Policy
from trainer.run import settle
from trainer.settings import overlay
from trainer.step.engine import Engine


@pytest.fixture(scope="module")
def parts():
    made = KLEIN.tiny()
    made.vae.bn.running_mean.copy_(torch.linspace(-1, 1, 32))
    made.vae.bn.running_var.copy_(torch.linspace(0.5, 2, 32))
    return made


def test_the_public_model_has_the_public_parameter_counts_and_no_memory():
    whole = KLEIN.meta()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in whole.modules().items()}
    assert counts == {"transformer": 3_875_544_576, "vae": 84_046_115, "text": 4_022_468_096}
    assert 2 * sum(counts.values()) / 1e9 == pytest.approx(KLEIN.export_gb, abs=0.1)
    assert all(p.is_meta for module in whole.modules().values() for p in module.parameters())
    assert (whole.latents.factor, whole.latents.channels) == (16, 128)
    assert KLEIN.public().divides == whole.divides == 16


def test_it_is_told_by_its_name_and_by_its_folder(parts, tmp_path):
    assert guess("black-forest-labs/FLUX.2-klein-base-4B") is KLEIN
    KLEIN.pipeline(parts).save_pretrained(tmp_path)
    family, facts = describe(str(tmp_path))
    assert family.name == "klein" and facts.prediction_type == "flow" and family.resolution == 1024
    assert fits({"guidance_embeds": True}) and not fits(KLEIN.config("transformer"))


def test_the_distilled_model_is_refused_and_the_base_model_named(parts, tmp_path):
    KLEIN.pipeline(parts, is_distilled=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="distilled") as refused:
        describe(str(tmp_path))
    assert "klein-base-4B" in refused.value.fix


def test_pictures_are_guided_as_the_pipeline_guides_them_unless_somebody_says_otherwise():
    for said, expected in (({}, 4.0), ({"sample.guidance_scale": 2.0}, 2.0)):
        config = overlay.load({"data.class_name": "dog"} | said)
        settle.learning(config, KLEIN)
        assert (config.sample.guidance_scale, config.prior.guidance_scale) == (expected, 4.0)


@torch.no_grad()
def test_latents_are_packed_and_normalised_as_the_pipeline_has_them(parts):
    pipeline = KLEIN.pipeline(parts)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    theirs = torch.cat([pipeline._encode_vae_image(one[None], generator=None) for one in pixels])
    ours = parts.latents.scaled(encode_pixels(parts.vae, pixels)[0])
    assert theirs.shape == (2, 32, 4, 6) and torch.allclose(ours, theirs, atol=1e-5)
    raw = Flux2KleinPipeline._unpatchify_latents(parts.latents.raw(ours))
    pictures = (parts.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(decode_latents(parts.vae, ours), pictures, atol=1e-5)


def test_the_objective_is_that_of_diffusers_training_example_on_the_same_noise(parts):
    """Numbers from running the lines of train_dreambooth_lora_flux2_klein.py (diffusers 58eb52c) over this model."""
    raw = torch.sin(torch.arange(2 * 8 * 8 * 8.0)).view(2, 8, 8, 8)
    text = torch.cos(torch.arange(2 * 512 * 48.0)).view(2, 512, 48)
    latents = parts.latents.scaled(Flux2KleinPipeline._patchify_latents(raw))
    objective = Objective(parts.noise(size=(64, 64)), prior_loss_weight=0.5)
    noise = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    noised = objective.noised(latents, noise, torch.tensor([536.0, 973.0]))
    assert float(noised.sample.double().square().sum()) == pytest.approx(763.115692789721, rel=1e-6)
    with torch.no_grad():
        answer = KLEIN.call(parts.denoiser, noised.sample, noised.timesteps, {"text": text})
    errors = objective.errors(answer, noised.target, noised.weights)
    total, _, prior = objective.halves(errors, 1)
    assert float(total) == pytest.approx(3.275007963180542, rel=1e-5)
    assert float(prior) == pytest.approx(2.094616413116455, rel=1e-5)


def test_noise_levels_are_drawn_evenly_as_in_the_example(parts):
    """Which takes one of a thousand, where every number between is drawn here."""
    noise = parts.noise(size=(1024, 1024))
    example = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config)
    shares = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    theirs = example.timesteps[(shares * 1000).long()]
    assert (noise.at(1 - shares) - theirs).abs().max() <= 1.0
    assert noise.weights(theirs, None).eq(1).all()


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (1024, 1024)])
def test_pictures_walk_down_the_levels_of_the_pipeline(parts, size):
    pipeline, text = KLEIN.pipeline(parts), torch.zeros(1, 512, 48)
    pipeline(
        prompt_embeds=text,
        guidance_scale=1.0,
        width=size[0],
        height=size[1],
        num_inference_steps=3,
        output_type="latent",
    )
    assert torch.allclose(parts.noise(size=size).sampler(3).sigmas, pipeline.scheduler.sigmas, atol=1e-6)


@torch.no_grad()
def test_the_sampler_draws_the_picture_that_the_pipeline_draws(parts):
    prompts = ["", "a photo of sks dog"]
    rows = KLEIN.encode_text(parts, prompts)["text"]
    texts = {prompt: {"text": row} for prompt, row in zip(prompts, rows, strict=True)}
    look = Look((96, 64), steps=4, guidance=4.0)
    *_, ours = draw(parts, parts.denoiser, texts, prompts[1:], [7], look, "cpu")
    theirs = KLEIN.pipeline(parts)(
        prompt=prompts[1],
        latents=noise_of([7], (32, 4, 6)),
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=4.0,
        output_type="pt",
    ).images
    assert torch.allclose(decode_latents(parts.vae, ours), theirs, atol=1e-4)


@torch.no_grad()
def test_a_pipeline_and_the_sampler_draw_the_same_through_streamed_units(parts):
    prompts, look = ["", "a photo of sks dog"], Look((64, 64), steps=2, guidance=4.0)
    rows = KLEIN.encode_text(parts, prompts)["text"]
    texts = {prompt: {"text": row} for prompt, row in zip(prompts, rows, strict=True)}
    *_, plain = draw(parts, parts.denoiser, texts, prompts[1:], [7], look, "cpu")
    own = KLEIN.tiny()
    engine = Engine(KLEIN.units(own), Policy(checkpointing="blocks", stream="all"), "cpu")
    stands_in = engine.as_module(own.denoiser, KLEIN)
    *_, ours = draw(own, stands_in, texts, prompts[1:], [7], look, "cpu")
    assert torch.equal(ours, plain)
    theirs = KLEIN.pipeline(own, transformer=stands_in)(
        prompt_embeds=rows[1:],
        negative_prompt_embeds=rows[:1],
        latents=noise_of([7], (32, 4, 4)),
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    raw = Flux2KleinPipeline._unpatchify_latents(own.latents.raw(ours))
    assert torch.allclose(raw, theirs, atol=1e-5)
