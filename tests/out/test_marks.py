"""What an exported file says of itself is what was trained, and nothing about the machine it was made on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from safetensors import safe_open

from trainer.files.safetensors_stream import header
from trainer.models import SD1, SD2, SDXL, STABLE, adapters, load
from trainer.models.describe import FLOW
from trainer.out import card, export, formats
from trainer.settings.config import Lora

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    "title": "my-cat",
    "folder": "10_sks cat",
    "captions": json.dumps({"sks cat, sofa": 3, "sks cat, garden": 2}),
    "model.name": "/somewhere/kept-apart/base.safetensors",
    "data.instance_prompt": "a photo of sks cat",
    "data.identifier": "sks",
    "data.class_name": "cat",
    "data.resolution": "128",
    "train.learning_rate": "1e-06",
    "train.seed": "3",
}


def written(parts, folder, formats, settings=SETTINGS):
    return [e for e in export.write(parts, None, folder, formats, "fp32", settings) if hasattr(e, "usage")]


def keys(path):
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("family", STABLE, ids=lambda family: family.name)
@pytest.mark.parametrize("rescaled", [False, True], ids=["usual", "ztsnr"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_marked_model_stays_marked_in_every_format(tmp_path, family, prediction, rescaled, record_property):
    record_property("shows", "take|any|marks of the prediction and of zero SNR in every format; SD 1, SD 2, SDXL|works")
    parts = family.tiny()
    parts.prediction_type = prediction
    events = written(
        parts, tmp_path, ["diffusers", "single_file"], SETTINGS | {"train.zero_terminal_snr": str(rescaled)}
    )
    velocity = prediction == "v_prediction"
    found = keys(tmp_path / "model.safetensors")
    assert ("v_pred" in found, "ztsnr" in found) == (velocity, rescaled)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "diffusers", local_files_only=True)
    config = pipeline.scheduler.config
    assert config.prediction_type == prediction
    assert bool(config.get("rescale_betas_zero_snr")) == rescaled, "the scheduler's class knows the setting, too"
    assert not rescaled or config.timestep_spacing == "trailing"
    again = load(str(tmp_path / "model.safetensors"))
    assert again.prediction_type == prediction
    assert bool(again.scheduler_config.get("rescale_betas_zero_snr")) == rescaled
    needs_config = velocity != (family is SD2) or rescaled
    assert ("config=" in events[1].usage) == needs_config, "readers go by the family alone"


@pytest.mark.parametrize("family", STABLE, ids=lambda family: family.name)
def test_who_draws_a_flow_matching_model_is_told_what_it_takes(tmp_path, family):
    parts = family.tiny()
    parts.prediction_type, parts.scheduler_config = "flow", FLOW
    settings = {}
    assert card.unlike_the_rest(parts, settings) and card.marks(parts, settings) == ()
    assert "modelspec.prediction_type" not in card.card(parts, "fp16", settings)
    (file,) = formats.files("single_file", parts, tmp_path, "fp16", settings)
    assert "ModelSamplingSD3" in file.usage and "config=" in file.usage


def test_a_base_model_that_was_marked_exports_marked(tmp_path):
    parts = SDXL.tiny()
    parts.prediction_type = "v_prediction"
    parts.scheduler_config = parts.scheduler_config | {"rescale_betas_zero_snr": True}
    written(parts, tmp_path, ["single_file"])
    assert {"v_pred", "ztsnr"} <= keys(tmp_path / "model.safetensors")


def test_files_of_adapters_carry_what_programs_show(tmp_path, record_property):
    record_property(
        "shows",
        "take|ComfyUI, WebUIs, CivitAI|title, trigger words, base model, resolution and tags of an adapter|works",
    )
    parts = SD2.tiny()
    adapters.inject(parts, Lora(rank=4, alpha=2))
    for event in written(parts, tmp_path, ["lora_diffusers", "lora_kohya"]):
        found = header(Path(event.path)).metadata
        assert found["modelspec.title"] == found["ss_output_name"] == "my-cat"
        assert found["modelspec.trigger_phrase"] == "sks cat"
        assert (found["modelspec.resolution"], found["ss_resolution"]) == ("128x128", "(128, 128)")
        assert found["ss_sd_model_name"] == "base.safetensors" and found["ss_base_model_version"] == "sd_v2_v"
        assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_v2"]) == ("4", "2", "True")
        assert json.loads(found["ss_tag_frequency"]) == {"10_sks cat": {"sks cat": 5, "sofa": 3, "garden": 2}}
        assert found["modelspec.tags"] == "sks cat, sofa, garden" and found["ss_num_train_images"] == "5"


def test_no_folder_of_this_machine_travels_in_a_file(tmp_path):
    base = tmp_path / "kept-apart" / "model.safetensors"
    written(SD1.tiny(), base.parent, ["single_file"])
    parts = load(str(base))
    adapters.inject(parts, Lora(rank=2))
    events = written(parts, tmp_path / "out", ["single_file", "diffusers", "lora_diffusers", "lora_kohya"])
    for file in (tmp_path / "out").rglob("*.*"):
        text = file.read_bytes()[:100_000].decode(errors="ignore")
        assert "kept-apart" not in text and str(tmp_path) not in text, file.name
    assert len(events) == 4


@pytest.mark.parametrize(("source", "shown"), [
    ("stabilityai/sdxl-base", "stabilityai/sdxl-base"), ("demo", "demo"), ("/home-of/me/x.safetensors", "x.safetensors"),
    ("models/mine/x.safetensors", "x.safetensors"), ("C:\\models\\x.safetensors", "x.safetensors"), ("~/models/x", "x"),
])  # fmt: skip
def test_a_model_is_named_without_its_folder(source, shown):
    assert card.public(source) == shown


def test_a_trigger_phrase_is_what_names_the_subject():
    assert card.trigger_phrase(SETTINGS) == "sks cat"
    assert card.trigger_phrase({"data.instance_prompt": "a zwx chair", "data.identifier": "sks"}) == "a zwx chair"
    told = {"data.instance_prompt": "sks in a garden", "data.identifier": "sks", "data.class_name": "None"}
    assert card.trigger_phrase(told) == "sks"


PLAIN = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
pipe("a photo of sks cat", num_inference_steps=1, height=64, width=64)
half = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float16)
assert half.text_encoder.dtype == half.unet.dtype == torch.float16
assert not [name for name in sys.modules if name.partition(".")[0] == "trainer"]
"""


@pytest.mark.parametrize("which", ["sd1", "sd2", "sdxl", "demo"])
def test_a_plain_script_draws_from_an_exported_folder_and_from_the_shipped_model(tmp_path, which, record_property):
    """The line of every tutorial, without a precision, in a process that has never heard of this trainer."""
    record_property(
        "shows", "take|diffusers|the folder in a plain script, with a precision and without; SD 1, SD 2, SDXL|works"
    )
    if which == "demo":
        folder = ROOT / "trainer" / "assets" / "demo" / "model"
    else:
        family = next(family for family in STABLE if family.name == which)
        list(export.write(family.tiny(), None, tmp_path, ["diffusers"], "fp16", {}))
        folder = tmp_path / "diffusers"
    done = subprocess.run([sys.executable, "-c", PLAIN, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_dora_says_that_programs_differ_and_what_is_exact(tmp_path, record_property):
    record_property("shows", "take|OneTrainer|names of DoRA's magnitudes|works")
    parts = SD1.tiny()
    adapters.inject(parts, Lora(rank=2), dora=True)
    diffusers, kohya = written(parts, tmp_path, ["lora_diffusers", "lora_kohya"])
    assert "single_file" in kohya.usage
    magnitudes = [key for key in keys(diffusers.path) if "magnitude" in key]
    assert magnitudes and all(key.endswith(".weight") for key in magnitudes), "OneTrainer maps no other name"
