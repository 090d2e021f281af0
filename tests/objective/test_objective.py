"""The objective against the papers' formulas written out in plain loops, and against diffusers' own scheduler."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from trainer.objective.loss import Given, Objective
from trainer.objective.noise import DDPM

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ABAR = SCHEDULER.alphas_cumprod.double()


def latents(rows: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_noised_latents_and_targets_are_those_of_diffusers_scheduler():
    x, noise, t = latents(), latents(seed=2), torch.tensor([0, 10, 500, 999])
    for prediction in ("epsilon", "v_prediction"):
        noised = Objective(DDPM(ABAR, prediction)).noised(x, noise, t)
        torch.testing.assert_close(noised.sample, SCHEDULER.add_noise(x, noise, t), rtol=1e-5, atol=1e-6)
        expected = noise if prediction == "epsilon" else SCHEDULER.get_velocity(x, noise, t)
        torch.testing.assert_close(noised.target, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_the_paper(prediction):
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(SCHEDULER, t)
    expected = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(
        Objective(DDPM(ABAR, prediction), snr_gamma=5.0).weights(t), expected.float(), rtol=1e-4, atol=1e-6
    )


def test_the_weight_at_zero_terminal_snr_is_its_limit():
    abar = torch.tensor([0.9, 0.0], dtype=torch.float64)
    t = torch.tensor([1])
    assert Objective(DDPM(abar), snr_gamma=5.0).weights(t).item() == 1.0
    assert Objective(DDPM(abar, "v_prediction"), snr_gamma=5.0).weights(t).item() == 0.0


def losses(objective, prediction, target, weights, instances, mask=None):
    """(total, instance, class) of a step of one micro-batch, as a run takes them."""
    return objective.of_step([Given(target, weights, mask, instances, None)], 1)(prediction, 0)


def test_each_half_is_averaged_on_its_own():
    prediction, target = latents(3), torch.zeros(3, 4, 6, 6)
    weights = torch.tensor([1.0, 0.5, 0.25])
    total, instance, prior = losses(Objective(DDPM(ABAR), prior_loss_weight=0.3), prediction, target, weights, 1)
    squares = prediction.pow(2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(instance, squares[0])
    torch.testing.assert_close(prior, (0.5 * squares[1] + 0.25 * squares[2]) / 2)
    torch.testing.assert_close(total, instance + 0.3 * prior)


def test_a_half_without_rows_adds_nothing():
    objective, x = Objective(DDPM(ABAR), prior_loss_weight=0.5), latents(2)
    photos = losses(objective, x, x * 0, torch.ones(2), 2)
    assert photos[0] == photos[1] and photos[2].isnan()
    prior = losses(objective, x, x * 0, torch.ones(2), 0)
    torch.testing.assert_close(prior[0], 0.5 * prior[2])
    assert prior[1].isnan()


def test_a_mask_silences_what_it_covers():
    prediction, target = latents(1), torch.zeros(1, 4, 6, 6)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 2.0  # mean one
    loss = losses(Objective(DDPM(ABAR)), prediction, target, torch.ones(1), 1, mask)[0]
    torch.testing.assert_close(loss, prediction[..., :3].pow(2).mean())


@pytest.mark.parametrize(("leaning", "share"), [("noisy", 0.75), ("uniform", 0.5), ("clean", 0.25)])
def test_photos_may_see_more_of_one_end_of_the_noise_and_class_images_do_not(leaning, share):
    objective, generator = Objective(DDPM(ABAR), timesteps=leaning), torch.Generator().manual_seed(0)
    many = latents(1).expand(4000, -1, -1, -1)
    found, others = (objective.draw(many, generator, photos).timesteps for photos in (True, False))
    half = len(ABAR) / 2
    assert (found >= half).float().mean() == pytest.approx(share, abs=0.04)
    assert (others >= half).float().mean() == pytest.approx(0.5, abs=0.04)


def test_offset_noise_shifts_whole_channels_and_only_them():
    plain = Objective(DDPM(ABAR)).draw(latents(), torch.Generator().manual_seed(7))
    shifted = Objective(DDPM(ABAR), offset_noise=0.1).draw(latents(), torch.Generator().manual_seed(7))
    shift = shifted.target - plain.target
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert shift.abs().max() > 0.01


def test_the_loss_of_a_step_is_divided_by_its_draws_and_reports_both_halves():
    """Photos and class images of one draw may lie in two micro-batches, which then are two terms and one draw."""
    objective, x = Objective(DDPM(ABAR), prior_loss_weight=0.5), latents(2)
    photos, classes = (
        SimpleNamespace(target=x * 0, weights=torch.ones(2), mask=None, instances=n, counts=None, reference=None)
        for n in (2, 0)
    )
    loss = objective.of_step([photos, classes, photos, classes], accumulation=2)
    totals = [loss(x, index)[0] for index in range(4)]
    torch.testing.assert_close(sum(totals), 1.5 * x.pow(2).mean())
    assert loss(x, 0)[2].isnan() and loss(x, 1)[1].isnan()
