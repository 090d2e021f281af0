"""One training step against an independent computation with plain diffusers parts, in fp32.

The reference shares no line with the trainer: diffusers' own UNet forward, its scheduler's noise and velocity, its SNR,
a loss per half written out, plain autograd. Gradients are read out of an AdamW step whose epsilon of 1 makes the update
proportional to them (for small gradients), so equal weights mean equal gradients.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from trainer.models import STABLE
from trainer.objective.loss import Given, Objective
from trainer.step.engine import AdamHyper, Engine, Policy

LR, GAMMA, PRIOR_WEIGHT = 0.1, 5.0, 0.7


def draw(parts, rows):
    generator = torch.Generator().manual_seed(3)
    side, unet = 8, parts.denoiser.config
    values = {"sample": torch.randn(rows, 4, side, side, generator=generator)}  # clean latents, to be noised
    values["text"] = torch.randn(rows, 77, unet.cross_attention_dim, generator=generator)
    if unet.addition_embed_type == "text_time":
        pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        values["pooled"] = torch.randn(rows, pooled, generator=generator)
        values["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows)
    return values, torch.randn(rows, 4, side, side, generator=generator), torch.tensor([40, 700, 130, 999])[:rows]


def reference(parts, values, noise, timesteps, instances, prediction, gamma):
    """(loss, gradients by name) from diffusers' parts and plain autograd."""
    keep = {k: parts.scheduler_config[k] for k in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    scheduler = DDPMScheduler(**keep, prediction_type=prediction)
    added = {"text_embeds": values["pooled"], "time_ids": values["time_ids"]} if "pooled" in values else None
    noisy = scheduler.add_noise(values["sample"], noise, timesteps)
    output = parts.denoiser(noisy, timesteps, values["text"], added_cond_kwargs=added).sample
    target = noise if prediction == "epsilon" else scheduler.get_velocity(values["sample"], noise, timesteps)
    snr = compute_snr(scheduler, timesteps)
    loss = 0.0
    for half, weight in ((range(instances), 1.0), (range(instances, len(timesteps)), PRIOR_WEIGHT)):
        errors = []
        for row in half:
            error = F.mse_loss(output[row], target[row])
            if gamma is not None:
                error = error * min(snr[row].item(), gamma) / (snr[row].item() + (prediction == "v_prediction"))
            errors.append(error)
        if errors:
            loss = loss + weight * sum(errors) / len(errors)
    loss.backward()
    return loss.item(), {f"unet.{name}": p.grad for name, p in parts.denoiser.named_parameters()}


@pytest.mark.parametrize("family", STABLE, ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("prior", "gamma", "prediction"),
    [
        (True, None, "epsilon"),
        (True, GAMMA, "epsilon"),
        (True, GAMMA, "v_prediction"),
        (False, None, "v_prediction"),
        (False, GAMMA, "epsilon"),
    ],
)
def test_loss_and_gradients_equal_plain_diffusers(family, prior, gamma, prediction):
    parts = family.tiny()
    rows, instances = (4, 2) if prior else (2, 2)
    values, noise, timesteps = draw(parts, rows)
    expected, gradients = reference(copy.deepcopy(parts), values, noise, timesteps, instances, prediction, gamma)
    before = {f"unet.{name}": p.detach().clone() for name, p in parts.denoiser.named_parameters()}

    parts.prediction_type = prediction
    objective = Objective(parts.noise(), gamma, prior_loss_weight=PRIOR_WEIGHT)
    noised = objective.noised(values["sample"], noise, timesteps)
    engine = Engine(family.units(parts), Policy(max_grad_norm=0.0, hyper=AdamHyper(eps=1.0, weight_decay=0.0)), "cpu")
    given = values | {"sample": noised.sample, "timestep": noised.timesteps}
    half = Given(noised.target, noised.weights, None, instances, None)
    result = engine.step([given], objective.of_step([half], 1), LR)

    assert result.losses[0, 0].item() == pytest.approx(expected, rel=1e-5)
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()]))
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    after = dict(engine.master())
    assert after.keys() == gradients.keys()
    scale = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        # Adam's first step moves by -lr g / (|g| + eps); solved for g
        moved = (before[name] - after[name]) / LR
        recovered = moved / (1 - moved.abs())
        torch.testing.assert_close(
            recovered, gradient, rtol=2e-3, atol=2e-5 * scale.item(), msg=lambda m, name=name: f"{name}: {m}"
        )
