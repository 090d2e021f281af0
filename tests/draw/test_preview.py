"""Pictures from any denoiser: the same as diffusers draws, the same in any batch, saved with a contact sheet."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from photos import finish, noise_picture
from PIL import Image
from sweep import DAMAGE

from trainer.data.texts import encode_prompts
from trainer.draw import preview as sample
from trainer.draw import sampler
from trainer.draw.painter import Painter
from trainer.draw.sheet import contact_sheet
from trainer.events import PhaseProgress, Sampled
from trainer.models import SD1, SD2, SDXL
from trainer.policy import Drawing

FAMILIES = [SD1, SD2, SDXL]
PROMPT = "a photo of sks dog"


def texts_of(parts, *prompts):
    return finish(encode_prompts(parts, prompts, "cpu"))[1]


def latents_of(parts, look, prompts=(PROMPT,), seeds=(7,), negative=""):
    texts = texts_of(parts, *prompts, negative, "")
    *steps, latents = sampler.draw(parts, parts.denoiser, texts, prompts, seeds, look, "cpu")
    assert steps == list(range(1, look.steps + 1))
    return latents


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_latents_equal_those_of_the_diffusers_pipeline(family, name):
    parts = family.tiny()
    look = sampler.Look((64, 64), steps=4, guidance=5.0, sampler=name)
    cls, settings = (DDIMScheduler, {"clip_sample": False}) if name == "ddim" else (DPMSolverMultistepScheduler, {})
    schedule = {
        k: parts.scheduler_config[k] for k in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    }
    pipeline = family.pipeline(parts)
    pipeline.scheduler = cls(**schedule, **settings, prediction_type=parts.prediction_type, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPT, height=64, width=64, num_inference_steps=4, guidance_scale=5.0, output_type="latent",
                        latents=sampler.noise_of([7], (4, 8, 8))).images  # fmt: skip
    assert torch.allclose(latents_of(parts, look), expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_begins_in_pure_noise_is_drawn_with_rescaled_guidance_as_the_paper_has_it():
    parts = SDXL.tiny()
    parts.prediction_type = "v_prediction"
    parts.scheduler_config = parts.scheduler_config | {"rescale_betas_zero_snr": True}
    look = sampler.Look((64, 64), steps=3, guidance=6.0)
    schedule = {k: parts.scheduler_config[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    pipeline = SDXL.pipeline(parts)
    pipeline.scheduler = DDIMScheduler(
        **schedule,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(PROMPT, height=64, width=64, num_inference_steps=3, guidance_scale=6.0, guidance_rescale=0.7,
                        output_type="latent", latents=sampler.noise_of([7], (4, 8, 8))).images  # fmt: skip
    assert torch.allclose(latents_of(parts, look), expected, atol=1e-4, rtol=1e-4)


def test_a_flow_matching_model_is_drawn_along_its_straight_lines():
    parts, steps = SDXL.tiny(), 4
    parts.prediction_type, parts.scheduler_config = "flow", {"num_train_timesteps": 1000, "shift": 2.0}
    look = sampler.Look((64, 64), steps, guidance=1.0)
    values = sampler.conditions(parts, texts_of(parts, PROMPT), [PROMPT], look, "cpu")
    x = sampler.noise_of([7], (4, 8, 8))
    levels = torch.linspace(1000, FlowMatchEulerDiscreteScheduler(shift=2.0).sigma_min * 1000, steps) / 1000
    levels = torch.cat([2.0 * levels / (1 + levels), torch.zeros(1)])
    with torch.no_grad():
        for now, after in pairwise(levels):
            x = x + (after - now) * SDXL.call(parts.denoiser, x, 1000 * now[None], values)
    assert torch.allclose(latents_of(parts, look), x, atol=1e-4, rtol=1e-4)


def test_a_negative_prompt_changes_the_picture():
    parts = SD1.tiny()
    plain, steered = sampler.Look((64, 64), 2), sampler.Look((64, 64), 2, negative="blurry")
    assert not torch.allclose(latents_of(parts, plain), latents_of(parts, steered, negative="blurry"))


def test_guidance_of_one_runs_the_model_once_a_step():
    parts, calls = SD1.tiny(), []
    hook = parts.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    latents_of(parts, sampler.Look((64, 64), 2, guidance=1.0))
    latents_of(parts, sampler.Look((64, 64), 2, guidance=3.0))
    hook.remove()
    assert calls == [1, 1, 2, 2]


def test_a_zero_terminal_snr_schedule_is_drawn_from_its_very_first_step():
    parts = SD2.tiny()
    look = sampler.Look((64, 64), 3, zero_terminal_snr=True)
    scheduler = parts.noise(look.zero_terminal_snr).sampler(look.steps, look.sampler)
    assert (
        isinstance(scheduler, DDIMScheduler)
        and scheduler.alphas_cumprod[-1] < 1e-6
        and int(scheduler.timesteps[0]) == 999
    )
    assert latents_of(parts, look).isfinite().all()


def test_previews_are_saved_with_a_sheet_and_do_not_depend_on_the_batch(tmp_path):
    parts = SD1.tiny()
    look, prompts, seeds = sampler.Look((64, 48), 2), [PROMPT, PROMPT, "a photo of a dog"], [0, 1, 0]
    texts = texts_of(parts, *prompts, "")

    def preview(folder, batch_size):
        return finish(
            sample.preview(
                Painter(parts, look, Drawing(batch=batch_size), torch.device("cpu"), texts),
                list(zip(prompts, seeds, strict=True)),
                folder,
                400,
            )
        )

    events, pictures = preview(tmp_path / "a", 1)
    sampled = next(event for event in events if isinstance(event, Sampled))
    assert (sampled.step, sampled.prompts, sampled.seeds) == (400, prompts, seeds)
    assert all("step-000400" in path for path in sampled.paths) and len(set(sampled.paths)) == 3
    assert [Image.open(path).size for path in sampled.paths] == [(64, 48)] * 3
    assert np.array_equal(np.asarray(Image.open(sampled.paths[0])), np.asarray(pictures[0]))
    assert Image.open(sampled.sheet).width > 3 * 64
    assert [event.done for event in events if isinstance(event, PhaseProgress)] == [1, 2, 3, 4, 5, 6, 6, 6, 6]
    _, batched = preview(tmp_path / "b", 3)
    for one, other in zip(pictures, batched, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    assert not np.array_equal(np.asarray(pictures[0]), np.asarray(pictures[1]))  # another seed
    assert not np.array_equal(np.asarray(pictures[0]), np.asarray(pictures[2]))  # another prompt


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["step-000002/00-a-dog-7.png", "step-000002/01-a-cat-0.png", "step-000002.png"])
def test_previews_count_as_drawn_while_each_picture_and_the_sheet_are_whole(tmp_path, name, damage):
    parts, rows = SD1.tiny(), [("a dog", 7), ("a cat", 0)]
    texts = texts_of(parts, "a dog", "a cat", "")
    painter = Painter(parts, sampler.Look((64, 64), 1), Drawing(batch=2), torch.device("cpu"), texts)
    finish(sample.preview(painter, rows, tmp_path, 2))
    assert sample.drawn(rows, tmp_path, 2)
    assert not sample.drawn(rows, tmp_path, 3) and not sample.drawn([*rows, ("a bird", 0)], tmp_path, 2)
    damage(tmp_path / name)
    assert not sample.drawn(rows, tmp_path, 2)


def test_a_sheet_holds_every_picture_and_long_captions_end_in_dots(tmp_path):
    pictures = [noise_picture((64, 64), i) for i in range(5)]
    sheet = contact_sheet(pictures, ["short"] * 4 + ["very long " * 30], tmp_path / "new" / "sheet.png", title="step 4")
    assert Image.open(tmp_path / "new" / "sheet.png").size == sheet.size
    seen = np.asarray(sheet)
    for picture in pictures:
        enlarged = np.asarray(picture.resize((128, 128), Image.Resampling.NEAREST))
        rows, columns = np.nonzero((seen == enlarged[0, 0]).all(-1))
        assert any(np.array_equal(seen[y : y + 128, x : x + 128], enlarged) for y, x in zip(rows, columns, strict=True))


def test_slugs_are_safe_file_names():
    assert sample.slug('A "photo" of sks/dog: in ../snow?') == "a-photo-of-sks-dog-in-snow"
    assert sample.slug("犬") == "empty" and len(sample.slug("word " * 50)) <= 40
