"""Noise: what both kinds promise, and Flow against diffusers' own scheduler."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from trainer.objective.noise import DDPM, Flow, golden

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = [DDPM.of(SCHEDULE), Flow(), Flow(shift=3.0, spread="logit_normal")]


def latents(rows: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", KINDS, ids=["ddpm", "flow", "shifted flow"])
def test_half_of_what_training_draws_lies_below_the_middle_level(noise):
    drawn = noise.draw(20_000, torch.Generator().manual_seed(0))
    for share in (0.1, 0.5, 0.9):
        below = (drawn < noise.at([share])).float().mean().item()
        assert below == pytest.approx(share, abs=0.015)
    assert drawn.min() >= 0 and drawn.max() <= 1000


@pytest.mark.parametrize("noise", KINDS, ids=["ddpm", "flow", "shifted flow"])
def test_pictures_become_noise_from_the_first_level_to_the_last(noise):
    x, eps = latents(2), latents(2, seed=2)
    little, much = noise.mix(x, eps, noise.at([1e-9] * 2)), noise.mix(x, eps, noise.at([1.0] * 2))
    torch.testing.assert_close(little, x, atol=0.3, rtol=0)
    torch.testing.assert_close(much, eps, atol=0.3, rtol=0)


@pytest.mark.parametrize("count", [7, 100, 1000])
def test_a_golden_spread_is_even_for_any_count_and_begins_with_the_smaller_ones(count):
    found = DDPM.of(SCHEDULE).at(golden(count)).sort().values
    assert found[0] < 2.7 * 1000 / count and found[-1] >= 1000 - 2.7 * 1000 / count
    # three-gap theorem: the golden ratio keeps gaps within a factor of 2.62
    assert found.diff().max() <= 2.7 * 1000 / count + 1
    assert golden(count) == golden(2000)[:count]


def test_flow_noises_as_diffusers_scheduler_does_and_its_target_is_the_line_from_picture_to_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    timesteps = scheduler.timesteps[torch.tensor([0, 100, 700, 999])]
    x, eps, flow = latents(), latents(seed=2), Flow(shift=3.0)
    torch.testing.assert_close(flow.mix(x, eps, timesteps), scheduler.scale_noise(x, timesteps, eps))
    assert torch.equal(flow.target(x, eps, timesteps), eps - x)


def test_a_shift_moves_levels_to_where_the_published_schedule_has_them():
    flow, scheduler = Flow(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    shares = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(flow.at(shares), scheduler.timesteps)


def test_logit_normal_levels_are_a_sigmoid_of_normal_numbers():
    drawn = torch.logit(Flow(spread="logit_normal", mean=0.5, deviation=2.0).draw(20_000, torch.Generator()) / 1000)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.05)
    assert drawn.std().item() == pytest.approx(2.0, abs=0.05)


def test_min_snr_of_a_velocity_weighs_the_pictures_error():
    """e_v = e_x / s, so weighing e_v^2 by s^2 min(SNR, gamma) weighs e_x^2 by min(SNR, gamma)."""
    flow, timesteps = Flow(), torch.tensor([100.0, 500.0, 900.0, 1000.0])
    sigma = timesteps / 1000
    snr = ((1 - sigma) / sigma) ** 2
    torch.testing.assert_close(flow.weights(timesteps, 5.0), sigma**2 * snr.clamp(max=5.0))
    assert torch.equal(flow.weights(timesteps, None), torch.ones(4))


def test_walking_the_samplers_way_along_a_straight_line_arrives_at_the_picture():
    flow = Flow(shift=3.0, schedule={"shift": 3.0, "num_train_timesteps": 1000})
    scheduler = flow.sampler(5)
    x, eps = latents(1), latents(1, seed=2)
    sample = flow.mix(x, eps, scheduler.timesteps[:1])
    for timestep in scheduler.timesteps:
        sample = scheduler.step(eps - x, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, x, atol=1e-5, rtol=1e-5)
