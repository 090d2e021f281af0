"""A line of diffusers' scripts finds its pipeline, its adapter and its checkpoints where those scripts leave them."""

import os

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from photos import folder_of
from safetensors.torch import load_file

from trainer.__main__ import main
from trainer.models import SD1
from trainer.out import checkpoint

LINE = (
    "{script} --pretrained_model_name_or_path model --instance_data_dir photos --instance_prompt photo --resolution 64 "
    "--train_batch_size 1 --learning_rate 5e-6 --lr_scheduler constant --output_dir out --checkpointing_steps 2 --seed 0 "
    "--num_validation_images 0 --no-watch --dashboard off --cache_dir cache"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    SD1.pipeline(SD1.tiny()).save_pretrained(folder / "model")
    folder_of(folder / "photos", 3)
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    for name in ("model", "photos", "cache"):
        (place / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words, script="train_dreambooth.py"):
    assert main([*LINE.format(script=script).split(), *words.split()]) == 0


def checkpoints():
    return {name for name in os.listdir("out") if "checkpoint" in name}


def test_a_pipeline_in_the_output_folder_and_checkpoints_that_load_count_and_resume(here, record_property):
    record_property("shows", "take|diffusers|the output folder of its own line, checkpoint-N included|works")
    run("--max_train_steps 5")
    assert checkpoints() == {"checkpoint-2", "checkpoint-4"}
    DiffusionPipeline.from_pretrained("out", local_files_only=True)
    early = UNet2DConditionModel.from_pretrained("out", subfolder="checkpoint-2/unet").state_dict()
    late = UNet2DConditionModel.from_pretrained("out", subfolder="unet").state_dict()
    assert any(not torch.equal(early[name], late[name]) for name in late), "it is the state of its own step"
    ours = [path.name for path in checkpoint.found(here / "out")]
    assert ours == ["checkpoint-2", "checkpoint-4", "step-000005"], "the last state is ours, beside theirs"
    assert {"config.toml", "log.jsonl"} <= set(os.listdir("out")) and not (
        here / "out" / "model" / "diffusers"
    ).exists()

    run("--max_train_steps 8 --resume_from_checkpoint checkpoint-4 --checkpoints_total_limit 2")
    assert checkpoints() == {"checkpoint-6", "checkpoint-8"}, "checkpoint-8 is the last state, too"
    assert "Resumed from out/checkpoint-4" in (here / "out" / "log.jsonl").read_text()


def test_an_adapter_lies_in_the_output_folder_and_in_each_checkpoint(here):
    run("--max_train_steps 2", script="train_dreambooth_lora.py")
    keys = load_file("out/pytorch_lora_weights.safetensors").keys()
    assert keys and all(key.startswith("unet.") and "lora" in key for key in keys)
    assert load_file("out/checkpoint-2/pytorch_lora_weights.safetensors").keys() == keys
    DiffusionPipeline.from_pretrained("model").load_lora_weights("out")
