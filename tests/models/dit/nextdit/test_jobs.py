"""Lumina Image 2.0 and Z-Image, tiny, through the whole job: trained, resumed after a kill, exported, loaded by diffusers, drawn."""

import itertools
import shutil
import signal
import subprocess
import sys
import time

import dit_job
import pytest
import torch
from diffusers import DiffusionPipeline, ZImageTransformer2DModel
from dit_job import CLOSE, LORA, apart, drawn
from PIL import Image
from safetensors.torch import load_file
from tiny_run import events, of, words

from trainer.errors import ConfigError
from trainer.events import Exported, Finished, Sampled, Step
from trainer.models.dit.nextdit.lumina2 import LUMINA2
from trainer.models.dit.nextdit.zimage import ZIMAGE

KINDS = list(itertools.product([LUMINA2, ZIMAGE], ["full", "lora", "dora"]))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0].name}-{kind[1]}")
def trained(request, tmp_path_factory):
    """(family, method, picture of the trained modules, picture before training, exports by format)."""
    family, method = request.param
    return family, method, *dit_job.trained(family.tiny(), method, tmp_path_factory.mktemp("out"))


def test_the_steps_are_seen(trained):
    _, _, picture, before, _ = trained
    assert apart(picture, before) > 4 * CLOSE


def test_diffusers_draws_from_the_folder_what_training_ended_with(trained):
    family, _, picture, _, exports = trained
    pipeline = DiffusionPipeline.from_pretrained(exports["diffusers"].path, local_files_only=True)
    assert type(pipeline).__name__ == family.pipeline_class
    assert apart(drawn(pipeline), picture) <= CLOSE


def test_diffusers_draws_from_the_public_names_what_training_ended_with(trained):
    """Of Lumina its conversion knows the public model's widths alone: test_lumina2_names.py has them."""
    family, _, picture, _, exports = trained
    folder, usage = exports["diffusers"].path, exports["single_file"].usage
    assert "models/diffusion_models" in usage and f"{family.denoiser.CLASS.__name__}.from_single_file(" in usage
    if family is ZIMAGE:
        transformer = ZImageTransformer2DModel.from_single_file(
            exports["single_file"].path, config=folder, subfolder="transformer", torch_dtype=torch.float32
        )
        pipeline = DiffusionPipeline.from_pretrained(folder, transformer=transformer, local_files_only=True)
        assert apart(drawn(pipeline), picture) <= CLOSE


@pytest.mark.parametrize("format", LORA)
def test_diffusers_draws_with_the_adapter_what_training_ended_with(trained, format):
    family, method, picture, _, exports = trained
    if method == "full":
        assert format not in exports
        return
    read = "load_lora_weights" in exports[format].usage
    # diffusers has no reader for kohya's names of Lumina, and leaves dora_scale out of Z-Image's
    assert read == (format == "lora_diffusers" or (family is ZIMAGE and method == "lora"))
    if read:
        pipeline = family.pipeline(family.tiny())
        pipeline.load_lora_weights(exports[format].path)
        assert apart(drawn(pipeline), picture) <= CLOSE


def test_kohyas_joint_adapters_of_lumina_are_the_updates_of_its_three(trained):
    family, method, _, _, exports = trained
    if family is not LUMINA2 or method != "lora":
        return
    kohya, own = (load_file(exports[format].path) for format in ("lora_kohya", "lora_diffusers"))
    key = "lora_unet_layers_1_attention_qkv"
    down, up = kohya[f"{key}.lora_down.weight"], kohya[f"{key}.lora_up.weight"]
    joint = up @ down * (kohya[f"{key}.alpha"] / len(down))
    path = "transformer.layers.1.attn.to_{}.lora_{}.weight"
    apart_ones = torch.cat([own[path.format(each, "B")] @ own[path.format(each, "A")] for each in "qkv"])
    torch.testing.assert_close(joint, apart_ones)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the tiny models and photos."""
    folder = tmp_path_factory.mktemp("runs")
    for family in (LUMINA2, ZIMAGE):
        family.pipeline(family.tiny()).save_pretrained(folder / family.name)
    (folder / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        small = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(small).resize((80, 64 + 16 * index)).save(folder / "photos" / f"{index}.png")
    return folder


SAVING = ("--checkpointing_steps", 2, "--with_prior_preservation")


@pytest.fixture(scope="module", params=["lumina2", "zimage"])
def whole(request, place):
    """(the model, events of a run)."""
    name = request.param
    return name, events(place, *SAVING, "--validation_steps", 2, model=name, run=f"{name}-whole")


def test_a_run_with_class_images_draws_trains_and_exports(whole):
    _, found = whole
    assert [step.step for step in of(Step, found)][-1] == 4
    assert all(step.class_loss > 0 for step in of(Step, found))
    assert {made.format for made in of(Exported, found)} == {"diffusers", "single file"}
    assert [sample.step for sample in of(Sampled, found)] == [2, 4]
    assert of(Finished, found)[-1].status == "done"


def test_a_run_that_was_killed_goes_on_to_the_same_bits(place, whole):
    name, _ = whole
    run = f"{name}-killed"
    line = words(place, *SAVING, "--max_train_steps", 400, model=name, run=run)
    process = subprocess.Popen([sys.executable, "-m", "trainer", *line], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while not (place / run / "step-000002").is_dir() and time.monotonic() < until:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for later in sorted((place / run).glob("step-*"))[1:]:
        shutil.rmtree(later)
    found = events(place, *SAVING, "--resume_from_checkpoint", "latest", model=name, run=run)
    assert [step.step for step in of(Step, found)][-1] == 4
    mine, theirs = (load_file(place / each / "model" / "model.safetensors") for each in (run, f"{name}-whole"))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


@pytest.mark.parametrize(("name", "method"), [("lumina2", "lora"), ("lumina2", "full"), ("zimage", "dora")])
def test_a_run_learns_beside_predictions_of_the_base_model(place, name, method):
    kept = ["--prior.by", "prediction", "--contrast", "0.5", "--others", "0.5"]
    found = events(place, *kept, *SAVING, "--method", method, model=name, run=f"{name}-{method}")
    assert of(Finished, found)[-1].status == "done"


@pytest.mark.parametrize("name", ["lumina2", "zimage"])
def test_training_a_text_encoder_is_refused_with_a_reason(place, name):
    with pytest.raises(ConfigError, match="text encoder"):
        events(place, "--train_text_encoder", model=name, run="refused")
