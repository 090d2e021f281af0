"""Meters: rows that stay the same from reading to reading, prompts for the judge, copies."""

import pytest
import torch
from PIL import Image
from small_data import small_data

from trainer.data.account import PhotoSet
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.events import Controls
from trainer.guard import judge, meters
from trainer.objective.loss import Objective
from trainer.policy import Drawing
from trainer.settings.config import Config


def test_a_repeated_photo_is_recognised_mirrored_too_and_another_is_not():
    torch.manual_seed(0)
    noise = [
        Image.fromarray((torch.rand(8, 8, 3) * 255).byte().numpy()).resize((64, 64), Image.Resampling.NEAREST)
        for _ in range(3)
    ]
    mirrored = noise[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert meters.repeats([mirrored, noise[2]], noise[:2]) == pytest.approx(0.5)


def test_a_probe_gives_the_same_rows_whenever_it_is_asked_in_chunks_of_the_rows_that_fit():
    parts, data, held = small_data()
    first, second = (meters.Probe(data, Objective(parts.noise()), 3, seed=0).of(held) for _ in range(2))
    assert [len(target) for _, target in first] == [3, 3, 2]
    for (mine, target), (again, same) in zip(first, second, strict=True):
        assert torch.equal(target, same) and all(torch.equal(mine[name], again[name]) for name in mine)
    levels = torch.cat([given["timestep"] for given, _ in first])
    assert len(levels.unique()) == meters.LEVELS


def test_the_judge_sees_the_subject_the_class_and_neither():
    said = meters.prompts_for("a photo of sks car", "a photo of a car")
    assert said[:3] == ["a photo of sks car", "a photo of sks car", "a photo of sks car in the snow"]
    assert said[3:5] == ["a photo of a car"] * 2 and len(said) == 7 and "a photo of a car" not in said[5:]


def test_drift_is_read_of_the_class_and_of_what_has_nothing_to_do_with_it():
    torch.manual_seed(0)
    photos = [Image.fromarray((torch.rand(64, 64, 3) * 255).byte().numpy()) for _ in range(14)]
    moved = set()

    def draw(prompts, seeds, controls):
        return [photos[i + 7 * (i in moved)] for i in range(len(prompts))]

    pictures = meters.Pictures(judge.load("demo"), draw, photos[:2], "a photo of hta dog", "a photo of a dog")
    first = pictures.read(Controls())
    assert [first[name] for name in ("drift", "class drift", "unrelated drift")] == pytest.approx([0] * 3, abs=1e-5)
    moved |= {5, 6}
    neither = pictures.read(Controls())
    assert neither["class drift"] == pytest.approx(0, abs=1e-5) and neither["unrelated drift"] > 0.01
    assert neither["drift"] == pytest.approx(neither["unrelated drift"] / 2)
    moved |= {3, 4}
    both = pictures.read(Controls())
    assert both["class drift"] > 0.01 and both["unrelated drift"] == neither["unrelated drift"]
    assert both["drift"] == pytest.approx((both["class drift"] + both["unrelated drift"]) / 2)


def test_there_are_pictures_only_where_a_judge_can_look_and_there_is_a_class_to_compare_with():
    parts, data, _ = small_data()
    painter = Painter(parts, Look((64, 64), steps=50), Drawing(batch=7), torch.device("cpu"), data.texts)

    def of(judge, class_name, name="some/model"):
        config = Config()
        config.guard.judge, config.data.class_name, config.model.name = judge, class_name, name
        config.data.instance_prompt = "a photo of hta dog"
        return meters.Pictures.of(config, painter, PhotoSet(()))

    assert of("none", "dog") is None and of("auto", "dog") is None and of("demo", None) is None
    assert of("auto", "dog", name="demo").prompts == meters.prompts_for("a photo of hta dog", "a photo of a dog")
