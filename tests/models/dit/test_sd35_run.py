"""Stable Diffusion 3.5 through the whole job: trained, resumed, exported, and read by diffusers as what was trained."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_run import events, of, words

from trainer.draw.sampler import Look, draw, noise_of
from trainer.events import Exported, Finished, Sampled, Step
from trainer.models import adapters, describe, load
from trainer.models.dit.sd35 import SD35
from trainer.models.vae import decode_latents
from trainer.out import checkpoint, export
from trainer.settings.config import Lora

PROMPT = "a photo of the dog"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the small model, the same without T5, and photos."""
    folder = tmp_path_factory.mktemp("sd35")
    SD35.pipeline(SD35.tiny()).save_pretrained(folder / "sd35")
    SD35.pipeline(SD35.tiny(), text_encoder_3=None, tokenizer_3=None).save_pretrained(folder / "clip")
    (folder / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        small = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(small).resize((80, 64 + 16 * index)).save(folder / "photos" / f"{index}.png")
    return folder


def run(place, *more, run, model="sd35"):
    found = events(place, *more, run=run, model=model)
    assert of(Finished, found)[0].status == "done"
    return found


@torch.no_grad()
def ours(parts) -> torch.Tensor:
    """The picture of PROMPT that our sampler draws with these parts."""
    values = SD35.encode_text(parts, ["", PROMPT])
    texts = {prompt: {name: values[name][i] for name in values} for i, prompt in enumerate(["", PROMPT])}
    *_, latents = draw(parts, parts.denoiser, texts, [PROMPT], [7], Look((64, 64), steps=3, guidance=4.0), "cpu")
    return decode_latents(parts.vae, latents)


def theirs(pipeline) -> torch.Tensor:
    """The same drawn by a pipeline of diffusers."""
    return pipeline(
        PROMPT, latents=noise_of([7], (16, 8, 8)), height=64, width=64, num_inference_steps=3, guidance_scale=4.0,
        output_type="pt",
    ).images  # fmt: skip


@pytest.fixture(scope="module")
def trained(place):
    return run(place, "--validation_steps", 2, "--export.precision", "fp32", run="whole")


def test_a_run_trains_every_weight_of_the_transformer_and_draws(place, trained):
    assert [event.step for event in of(Step, trained)] == [1, 2, 3, 4]
    assert {event.step for event in of(Sampled, trained)} == {2, 4}
    before = load(str(place / "sd35")).denoiser.state_dict()
    after = load(str(place / "whole/model/diffusers")).denoiser.state_dict()
    assert {name for name in before if torch.equal(before[name], after[name])} == {"pos_embed.pos_embed"}


def test_the_folder_opens_in_diffusers_and_draws_the_trained_picture(place, trained):
    folder = place / "whole/model/diffusers"
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    picture = ours(load(str(folder)))
    assert torch.allclose(theirs(pipeline), picture, atol=1e-4)
    assert not torch.allclose(ours(load(str(place / "sd35"))), picture, atol=1e-3)


def test_the_single_file_opens_in_diffusers_and_here(place, trained):
    model = place / "whole/model"
    folder = load(str(model / "diffusers"))
    state = folder.denoiser.state_dict()
    file = str(model / "model.safetensors")
    converted = SD3Transformer2DModel.from_single_file(
        file, config=str(model / "diffusers"), subfolder="transformer", local_files_only=True
    ).state_dict()
    assert converted.keys() == state.keys() and all(torch.equal(state[name], converted[name]) for name in state)
    family, facts = describe(file)
    assert family.name == "sd35" and "text_encoder_3" not in facts.configs
    read = load(file)
    assert len(read.text_encoders) == len(read.tokenizers) == 2
    assert all(torch.equal(state[name], tensor) for name, tensor in read.denoiser.state_dict().items())
    without = replace(folder, text_encoders=folder.text_encoders[:2], tokenizers=folder.tokenizers[:2])
    assert torch.equal(ours(read), ours(without))
    (made,) = (event for event in of(Exported, trained) if event.format == "single file")
    assert "ModelSamplingSD3" not in made.usage  # ComfyUI knows what the family is


def test_a_model_without_t5_trains_and_stays_without_it(place):
    found = run(place, "--by", "prediction", run="clip-run", model="clip")
    folder = place / "clip-run/model/diffusers"
    assert not (folder / "text_encoder_3").exists()
    left_out = {"text_encoder_3": None, "tokenizer_3": None}  # which diffusers wants to be told
    assert any("text_encoder_3=None, tokenizer_3=None" in event.usage for event in of(Exported, found))
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **left_out)
    assert torch.allclose(theirs(pipeline.to(torch.float32)), ours(load(str(folder))), atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_open_in_diffusers_and_draw_the_trained_picture(place, tmp_path, method):
    parts = SD35.tiny()
    adapters.inject(parts, Lora(rank=4, alpha=2), dora=method == "dora")
    with torch.no_grad():
        for _, parameter in adapters.trainable(parts):
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    picture = ours(parts)
    list(export.write(parts, None, tmp_path, ["lora_diffusers", "lora_kohya"], "fp32", {}))
    pipeline = SD35.pipeline(SD35.tiny())
    before = theirs(pipeline)
    pipeline.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    assert torch.allclose(theirs(pipeline), picture, atol=1e-4)
    assert not torch.allclose(before, picture, atol=1e-3)
    keys = load_file(tmp_path / "lora_kohya.safetensors")
    assert "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight" in keys  # as OneTrainer writes it
    assert not any("attn2" in key for key in keys)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_train(place, method):
    found = run(place, "--method", method, "--with_prior_preservation", run=method)
    assert {event.format for event in of(Exported, found)} == {"lora diffusers", "lora kohya"}
    (kohya,) = (event for event in of(Exported, found) if event.format == "lora kohya")
    assert "load_lora_weights" not in kohya.usage  # diffusers knows no names but its own for this family
    keys = load_file(place / method / "model/pytorch_lora_weights.safetensors")
    assert all(
        keys[name].any() for name in keys if ".lora_B." in name and "transformer_blocks.2.attn.add_q" not in name
    )


def test_training_the_text_encoders_is_refused(place):
    from trainer.errors import ConfigError

    with pytest.raises(ConfigError, match="not trained"):
        events(place, "--train_text_encoder", run="refused", model="sd35")


def test_a_run_that_was_killed_goes_on_to_the_same_weights(place):
    more = ("--checkpointing_steps", "1", "--max_train_steps", "8")
    run(place, *more, run="alone")
    line = [sys.executable, "-m", "trainer", *words(place, *more, run="killed", model="sd35")]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 300
        while not (place / "killed").is_dir() or not checkpoint.found(place / "killed"):
            assert process.poll() is None and time.monotonic() < until, "it ended before it was killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert not (place / "killed/model").exists()
    run(place, *more, "--resume_from_checkpoint", "latest", run="killed")
    alone, killed = (
        load_file(place / name / "model/diffusers/transformer/diffusion_pytorch_model.safetensors")
        for name in ("alone", "killed")
    )
    assert all(torch.equal(alone[name], killed[name]) for name in alone)
