"""Lumina Image 2.0 as a family: sizes, noise and pictures as diffusers, its training example and the model's own code have them."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from small_unet import FusedAdamW

from trainer.draw.sampler import Look, draw, noise_of
from trainer.models import describe, guess
from trainer.models.dit.nextdit import lumina2_units
from trainer.models.dit.nextdit.lumina2 import LUMINA2, fits
from trainer.models.rows import stacked
from trainer.models.vae import decode_latents
from trainer.objective.loss import Objective
from trainer.policy import Policy
from trainer.step.engine import Engine


@pytest.fixture(scope="module")
def parts():
    return LUMINA2.tiny()


def test_the_public_model_has_the_public_parameter_counts_and_no_memory():
    whole = LUMINA2.meta()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in whole.modules().items()}
    assert counts == {"transformer": 2_609_769_152, "vae": 83_819_683, "text": 2_614_341_888}
    assert 2 * sum(counts.values()) / 1e9 == pytest.approx(LUMINA2.export_gb, abs=0.1)
    assert all(p.is_meta for module in whole.modules().values() for p in module.parameters())
    assert (whole.latents.factor, whole.latents.channels) == (8, 16)
    assert LUMINA2.public().divides == whole.divides == 16


def test_it_is_told_by_its_name_and_by_its_folder(parts, tmp_path):
    assert guess("Alpha-VLLM/Lumina-Image-2.0") is LUMINA2
    LUMINA2.pipeline(parts).save_pretrained(tmp_path)
    family, facts = describe(str(tmp_path))
    assert family.name == "lumina2" and facts.prediction_type == "flow" and family.resolution == 64
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("Lumina2Pipeline", "Lumina2Text2ImgPipeline"))  # the public model's
    assert describe(str(tmp_path))[0].name == "lumina2"
    assert fits({"in_channels": 4}) and not fits(LUMINA2.config("transformer"))


def test_the_objective_is_that_of_diffusers_training_example_on_the_same_noise(parts):
    """Numbers from running the lines of train_dreambooth_lora_lumina2.py (diffusers 58eb52c) over this model. Its sigmas are
    shares of the picture, and its transformer answers picture - noise: the squares are the same."""
    raw = torch.sin(torch.arange(2 * 16 * 8 * 8.0)).view(2, 16, 8, 8)
    text = torch.cos(torch.arange(2 * 12 * 32.0)).view(2, 12, 32)
    mask = torch.arange(12) < torch.tensor([[7], [12]])
    objective = Objective(parts.noise(size=(64, 64)), prior_loss_weight=0.5)
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = objective.noised(parts.latents.scaled(raw), noise, 1000 * (1 - torch.tensor([0.9333332777, 0.4])))
    assert float(noised.sample.double().square().sum()) == pytest.approx(448.0353584101746, rel=1e-6)
    with torch.no_grad():
        answer = LUMINA2.call(parts.denoiser, noised.sample, noised.timesteps, {"text": text, "mask": mask})
    errors = objective.errors(answer, noised.target, noised.weights)
    total, _, prior = objective.halves(errors, 1)
    assert float(total) == pytest.approx(2.220611095428467, rel=1e-5)
    assert float(prior) == pytest.approx(1.4170260429382324, rel=1e-5)


@pytest.mark.parametrize(("size", "mu"), [((1024, 1024), 1.15), ((256, 256), 0.5), ((768, 1344), 1.139167)])
def test_noise_levels_are_drawn_as_the_models_own_code_draws_them(parts, size, mu):
    """Numbers of `Transport.sample` (Lumina-Image-2.0, transport.py) with snr_type lognorm, whose t is the picture's share."""
    levels = parts.noise(size=size).at([0.1, 0.5, 0.9]).double() / 1000
    even = torch.sigmoid(torch.tensor([-1.2815515655, 0.0, 1.2815515655], dtype=torch.float64))
    picture = 1 - math.exp(mu) / (math.exp(mu) + 1 / even - 1)
    torch.testing.assert_close(1 - levels, picture, rtol=1e-5, atol=1e-6)
    assert parts.noise(size=size).weights(levels, None).eq(1).all()


def test_diffusers_example_draws_the_levels_of_its_scheduler_the_other_way_round(parts):
    """Why its distribution is not followed: its levels, shares of the picture, are near 1 where the scheduler's noise is."""
    example = FlowMatchEulerDiscreteScheduler.from_config(parts.scheduler_config)
    shares = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    picture = example.timesteps[(shares * 1000).long()] / 1000
    assert (1 - picture).median() < 0.16
    assert parts.noise(size=(1024, 1024)).at([0.5]) > 750


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_pictures_walk_down_the_levels_of_the_pipeline(parts, size):
    pipeline, rows = LUMINA2.pipeline(parts), LUMINA2.encode_text(parts, ["a dog"])
    pipeline(
        prompt_embeds=rows["text"],
        prompt_attention_mask=rows["mask"],
        guidance_scale=1.0,
        width=size[0],
        height=size[1],
        num_inference_steps=3,
        output_type="latent",
    )
    assert torch.equal(parts.noise(size=size).sampler(3).sigmas, pipeline.scheduler.sigmas)


@torch.no_grad()
def test_the_sampler_draws_the_picture_that_the_pipeline_draws(parts):
    prompts = ["", "a photo of sks dog"]
    rows = LUMINA2.encode_text(parts, prompts)
    texts = {prompt: {name: rows[name][i] for name in rows} for i, prompt in enumerate(prompts)}
    look = Look((96, 64), steps=4, guidance=4.0)
    *_, ours = draw(parts, parts.denoiser, texts, prompts[1:], [7], look, "cpu")
    theirs = LUMINA2.pipeline(parts)(
        prompt=prompts[1],
        latents=noise_of([7], (16, 8, 12)),
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=4.0,
        cfg_normalization=False,
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
    plain, streamed = LUMINA2.tiny(), LUMINA2.tiny()
    target = torch.randn(2, 16, 8, 8, generator=generator)

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return (prediction - target).square().mean()

    optimizer = FusedAdamW(list(plain.denoiser.parameters()), 1e-2)
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(lumina2_units.call(plain.denoiser, given["sample"], given["timestep"], given))
        value.backward()
        optimizer.step()
        expected.append(value.detach())
    engine = Engine(LUMINA2.units(streamed), replace(policy, max_grad_norm=0.0), "cpu")
    found = [engine.step([given], lambda prediction, _: loss(prediction), lr=1e-2).losses[0, 0] for _ in range(2)]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    weights = dict(engine.master())
    assert all(torch.equal(weights[f"transformer.{name}"], p) for name, p in plain.denoiser.named_parameters())
