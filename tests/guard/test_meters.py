"""Meters: rows that stay the same from reading to reading, prompts for the judge, copies."""

import pytest
import torch
from PIL import Image
from small_data import small_data

from trainer.guard import meters
from trainer.objective.loss import Objective


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
