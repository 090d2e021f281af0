"""Prior by prediction: cached answers of the base model are exactly what it answers, and nothing else."""

import pytest
import torch
from photos import finish, settings
from small_data import small_data

from trainer.data.texts import encode_prompts
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.events import PhaseEnded, PhaseProgress, PhaseStarted
from trainer.models import SD1, SD2, SDXL
from trainer.objective.loss import Objective
from trainer.policy import Drawing
from trainer.prior import prediction, turn

FAMILIES = [SD1, SD2, SDXL]


def ensure(parts, folder, *args, **more):
    return finish(begin(parts, folder, *args, **more))


def begin(parts, folder, config=None, draws=6, latents=2, photos=None, **more):
    config = config or settings(folder)
    words = ["a photo of a dog", "a photo of a car", "a photo of a tree", ""]
    texts = finish(encode_prompts(parts, words, "cpu"))[1]
    painter = Painter(parts, Look((64, 64)), Drawing(**more), torch.device("cpu"), texts)
    return prediction.ensure(painter, config, folder, prediction.Amount(draws, latents, 2), photos)


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_targets_are_the_models_own_conditional_predictions_on_noised_latents(family, tmp_path):
    parts = family.tiny()
    _, made = ensure(parts, tmp_path)
    abar = parts.noise().abar
    for index in range(len(made)):
        draw = made[index]
        values = family.encode_text(parts, ["a photo of a dog"]) | family.extra_values((64, 64), (0, 0), (64, 64), 1)
        values |= {"sample": draw.sample[None], "timestep": draw.timestep[None]}
        with torch.no_grad():
            expected = family.denoise(parts, values)[0]
        assert torch.allclose(draw.target, expected, atol=2e-3, rtol=1e-3)  # stored in fp16
        noise = (draw.sample - abar[draw.timestep].sqrt() * made.latents[index % 2].float()) / (
            1 - abar[draw.timestep]
        ).sqrt()
        generator = torch.Generator().manual_seed(prediction.NOISE_SEED + index)
        assert torch.allclose(noise.float(), torch.randn(4, 8, 8, generator=generator), atol=1e-3)


def test_the_loss_of_the_untouched_model_is_zero_on_them(parts, tmp_path):
    """What class images cannot do: their target is noise, so even the untouched model has a loss there."""
    _, made = ensure(parts, tmp_path)
    draws = [made[i] for i in range(len(made))]
    values = {"sample": torch.stack([d.sample for d in draws]), "timestep": torch.stack([d.timestep for d in draws])}
    values |= parts.family.encode_text(parts, [made.prompt(0)] * len(draws))
    with torch.no_grad():
        error = parts.family.denoise(parts, values) - torch.stack([d.target for d in draws])
    assert error.square().mean() < 1e-6


def test_draws_follow_the_generator(parts, tmp_path):
    _, made = ensure(parts, tmp_path)

    def timesteps(seed):
        rows = prediction.PredictedRows(made, small_data()[1], Objective(parts.noise()))
        return rows.take(20, torch.Generator().manual_seed(seed)).values["timestep"].tolist()

    assert timesteps(1) == timesteps(1) != timesteps(2)
    assert set(timesteps(1)) <= set(made.timesteps.tolist())


def test_a_second_run_reuses_and_a_longer_one_continues(parts, tmp_path):
    _, first = ensure(parts, tmp_path, draws=4)
    events, again = ensure(parts, tmp_path, draws=4)
    assert not any(isinstance(event, PhaseStarted) for event in events)
    assert torch.equal(first.targets, again.targets)
    events, longer = ensure(parts, tmp_path, draws=7)
    assert next(event.total for event in events if isinstance(event, PhaseStarted)) == 3
    assert torch.equal(longer.targets[:4], first.targets) and torch.equal(longer.timesteps[:4], first.timesteps)
    _, at_once = ensure(parts, tmp_path / "other", draws=7)
    assert torch.allclose(longer.targets.float(), at_once.targets.float(), atol=2e-3)


def test_a_run_with_fewer_waits_and_takes_nothing_from_one_with_more(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(turn, "POLL_SECONDS", 0)
    more = begin(parts, tmp_path, draws=7)
    while not isinstance(next(more), PhaseProgress):
        pass
    fewer = begin(parts, tmp_path, draws=4)
    waiting = [next(fewer) for _ in range(9)]
    assert "waits for it" in waiting[0].text
    _, seven = finish(more)
    rest, four = finish(fewer)
    assert torch.equal(four.targets, seven.targets[:4]) and any("4 predictions reused" in str(event) for event in rest)
    events, again = ensure(parts, tmp_path, draws=7)
    assert not any(isinstance(event, PhaseStarted) for event in events) and torch.equal(again.targets, seven.targets)


def test_other_predictions_are_waited_for_by_nobody(parts, tmp_path):
    first = begin(parts, tmp_path)
    while not isinstance(next(first), PhaseProgress):
        pass
    events, made = ensure(parts, tmp_path, settings(tmp_path, prior__class_seed=5))
    assert len(made) == 6 and not any("waits for it" in str(event) for event in events)
    first.close()


def test_the_cache_depends_on_model_prompt_seed_and_size_but_not_on_learning(parts, tmp_path):
    ensure(parts, tmp_path)

    def made_again(config=None, model=parts):
        return any(isinstance(event, PhaseStarted) for event in ensure(model, tmp_path, config)[0])

    assert not made_again(settings(tmp_path, train__learning_rate=1e-3))
    assert not made_again(settings(tmp_path, train__seed=4))  # their seed is their own
    assert made_again(settings(tmp_path, prior__class_seed=4))
    assert made_again(settings(tmp_path, data__resolution=128))
    assert made_again(settings(tmp_path, prior__guidance_scale=2.0))
    assert made_again(model=SD1.tiny(seed=1))


def test_size_and_progress_are_told(parts, tmp_path):
    events, made = ensure(parts, tmp_path)
    assert made.size_bytes == (2 + 6) * 4 * 8 * 8 * 2 + 6 * 8
    assert "MiB" in next(event.detail for event in events if isinstance(event, PhaseEnded))
    progress = [event.done for event in events if isinstance(event, PhaseProgress)]
    assert progress == sorted(progress) and progress[-1] == 2 * 2 + 6


def test_where_training_rescales_the_schedule_the_base_model_is_told_its_own_equally_noisy_timestep(tmp_path):
    parts = SD2.tiny()
    _, plain = ensure(parts, tmp_path)
    _, made = ensure(parts, tmp_path, settings(tmp_path, train__zero_terminal_snr=True))
    own, rescaled = parts.noise(), parts.noise(zero_terminal_snr=True)
    assert torch.equal(made.timesteps, plain.timesteps) and torch.equal(made.latents, plain.latents)
    told = own.as_strong_as(rescaled, made.timesteps)
    for i in range(len(made)):
        distance = (own.abar - rescaled.abar[made.timesteps[i]]).abs()
        assert distance[told[i]] == distance.min()
        values = parts.family.encode_text(parts, ["a photo of a dog"])
        values |= {"sample": made[i].sample[None], "timestep": told[i][None]}
        with torch.no_grad():
            expected = parts.family.denoise(parts, values)[0]
        assert torch.allclose(made[i].target, expected, atol=2e-3, rtol=1e-3)
    assert (told > made.timesteps).any(), "the rescaled schedule is noisier"


def test_predictions_made_in_half_precision_leave_the_model_as_it_was(parts, tmp_path):
    before = next(parts.denoiser.parameters()).clone()
    ensure(parts, tmp_path, denoiser_dtype=torch.bfloat16, draws=2, latents=1)
    assert torch.equal(next(parts.denoiser.parameters()), before)


def test_others_prompts_share_the_latents_and_bring_their_own_answers(parts, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a photo of a car\na photo of a tree\n")
    config = settings(tmp_path, prior__others=0.5, prior__others_prompts=str(words))
    _, made = ensure(parts, tmp_path, config, draws=8, latents=4)
    assert made.prompts == ("a photo of a car", "a photo of a dog", "a photo of a tree", "a photo of a dog")
    for index in (2, 5):
        draw, prompt = made[index], made.prompt(index)
        values = parts.family.encode_text(parts, [prompt])
        values |= {"sample": draw.sample[None], "timestep": draw.timestep[None]}
        with torch.no_grad():
            assert torch.allclose(draw.target, parts.family.denoise(parts, values)[0], atol=2e-3, rtol=1e-3)
    _, plain = ensure(parts, tmp_path, draws=8, latents=4)
    assert set(plain.prompts) == {"a photo of a dog"}
    assert torch.equal(plain.latents[1], made.latents[1])  # the class's own are the same beside others
