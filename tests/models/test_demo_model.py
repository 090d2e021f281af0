"""The shipped demo model is a genuine, small Stable Diffusion folder that nobody but diffusers is needed for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ASSETS = Path(__file__).resolve().parents[2] / "trainer/assets/demo"
MEGA = 1_000_000


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pipe():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(ASSETS / "model", safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt: str, seed: int) -> Image.Image:
    return pipe(prompt, num_inference_steps=4, generator=torch.Generator().manual_seed(seed)).images[0]


def test_diffusers_alone_draws_the_same_picture_for_the_same_seed(pipe):
    first, second, other = (np.asarray(draw(pipe, "a photo of a cat", seed)) for seed in (3, 3, 4))
    assert first.shape == (64, 64, 3)
    assert (first == second).all()
    assert (first != other).any()


def test_the_prompt_changes_the_picture(pipe):
    day, night = (
        np.asarray(draw(pipe, prompt, 3), np.float32)
        for prompt in ("a photo of a cat on a white background", "a photo of a cat on a black background")
    )
    assert day.mean() > night.mean() + 30


def test_the_scheduler_is_stable_diffusions(pipe):
    config = json.loads((ASSETS / "model/scheduler/scheduler_config.json").read_text())
    wanted = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "num_train_timesteps": 1000,
    }
    assert {key: config[key] for key in wanted} == wanted


def test_the_tokenizer_is_clips(pipe):
    assert len(pipe.tokenizer) == 49408
    assert pipe.tokenizer("a photo of a sks dog").input_ids == [49406, 320, 1125, 539, 320, 48136, 1929, 49407]
    assert len(pipe.tokenizer("ohwx").input_ids) == 3
    assert pipe.text_encoder.get_input_embeddings().weight.shape == (49408, 64)


def test_an_identifier_has_a_sane_embedding_though_it_never_trained(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight
    norms = table[[48136, 47993]].norm(dim=1)
    assert torch.isfinite(table).all()
    assert (norms > 0.02).all() and (norms < 2).all()


def test_everything_is_half_precision_and_small():
    from safetensors import safe_open

    for path in ASSETS.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}, path  # noqa: SIM118
    assert size_bytes(ASSETS / "model") <= 30 * MEGA
    assert size_bytes(ASSETS / "judge") <= 10 * MEGA
    assert (ASSETS / "sheet.png").stat().st_size <= 300_000


def test_latents_of_photos_have_unit_variance_and_decode_to_the_photo(pipe):
    photo = Image.open(ASSETS / "subjects/tuxedo-cat/01.png").convert("RGB").resize((64, 64), Image.Resampling.BOX)
    x = torch.from_numpy(np.asarray(photo)).permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1
    with torch.no_grad():
        z = pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor
        back = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    assert 0.4 < z.std() < 2.5
    assert -10 * torch.log10((back.clamp(-1, 1) - x).square().mean() / 4) > 17


def test_what_was_held_out_did_not_train():
    split = json.loads((ASSETS / "split.json").read_text())
    subjects = json.loads((ASSETS / "subjects/subjects.json").read_text())
    assert not set(split["train"]) & set(split["held_out"])
    assert {entry["design"] for entry in subjects.values()} <= set(split["held_out"])
    assert len(split["classes"]) >= 12 and len(split["pairs"]) >= len(split["classes"])


def test_every_subject_has_photos_words_and_an_unseen_context():
    subjects = json.loads((ASSETS / "subjects/subjects.json").read_text())
    assert len(subjects) == 4
    for name, entry in subjects.items():
        photos = sorted((ASSETS / "subjects" / name).glob("*.png"))
        assert len(photos) in (5, 6) and len(photos) == len(entry["contexts"])
        assert entry["unseen_context"] not in entry["contexts"]
        assert entry["identifier"] in entry["unseen_prompt"] and entry["class_name"] in entry["unseen_prompt"]
        assert entry["words"] and entry["licence"] and entry["source"]


def test_the_card_states_numbers_that_reach_the_goal():
    numbers = json.loads((ASSETS / "numbers.json").read_text())["numbers"]
    card = (ASSETS / "MODEL_CARD.md").read_text()
    assert numbers["relative_class"] >= 0.8 and numbers["relative_context"] >= 0.8
    assert f"{numbers['relative_class']:.3f}" in card and f"{numbers['relative_context']:.3f}" in card
    assert "CC-BY-4.0" in (ASSETS / "NOTICE").read_text()
