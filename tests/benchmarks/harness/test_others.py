"""Every other trainer is told the same job in its own words."""

import json

from trainer.benchmarks.harness import jobs, others
from trainer.benchmarks.harness.timing import DEMO, Options


def made(tmp_path):
    for name in ("model", "photos", "classes"):
        (tmp_path / name).mkdir()
    return jobs.Material(tmp_path, tmp_path / "model", tmp_path / "photos", tmp_path / "classes", 64)


def line(name, tmp_path, model="sd1"):
    return others.CHECKOUTS[name][1](["python", "script.py"], Options(model))(
        made(tmp_path), tmp_path / "runs" / "run", 8
    )


def test_only_on_the_built_in_model_diffusers_script_saves_no_memory(tmp_path):
    (tmp_path / "demo").mkdir()
    savers = {"--gradient_checkpointing", "--use_8bit_adam"}
    assert savers <= set(line("diffusers", tmp_path))
    assert savers.isdisjoint(line("diffusers", tmp_path / "demo", DEMO))


def test_kohya_sees_each_photo_as_often_as_there_are_class_images_and_the_text_encoder_stays(tmp_path):
    words = line("kohya", tmp_path)
    assert (tmp_path / "runs" / "photos" / f"{jobs.CLASS_IMAGES // jobs.PHOTOS}_sks dog").is_dir()
    assert words[words.index("--stop_text_encoder_training") + 1] == -1


def test_onetrainer_counts_as_many_epochs_as_make_the_steps(tmp_path):
    (tmp_path / "runs").mkdir()
    words = line("onetrainer", tmp_path)
    settings = json.loads(words[words.index("--config-path") + 1].read_text())
    assert settings["epochs"] * jobs.PHOTOS == 8 and settings["text_encoder"] == {"train": False}
