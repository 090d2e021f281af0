"""What is cut out of a photo, and what SDXL is told about it."""

import numpy as np
import pytest
import torch
from photos import noise_picture
from PIL import Image

from trainer.data import crops


def test_the_centre_crop_is_the_largest_square_in_the_middle():
    view = crops.center((100, 60), (64, 64))
    assert view.box == (20, 0, 80, 60)


def test_a_picture_of_the_right_size_is_not_resampled():
    picture = noise_picture((64, 64))
    assert np.array_equal(np.asarray(crops.cut(picture, crops.center((64, 64), (64, 64)))), np.asarray(picture))


def test_sdxl_is_told_the_same_corner_as_by_resizing_first_and_cropping_then():
    view = crops.center((1500, 1200), (1024, 1024))
    resized_width = 1500 * 1024 // 1200
    assert view.original_size == (1200, 1500) and view.target_size == (1024, 1024)
    assert view.crop_top_left == (0, (resized_width - 1024) // 2)


def test_a_mirrored_view_counts_its_corner_in_the_mirrored_photo():
    view = crops.place((200, 100), (50, 50), 0.25, 0.5)
    mirrored = crops.View(view.photo, view.box, view.size, flip=True)
    left = view.crop_top_left[1]
    assert mirrored.crop_top_left[1] == 100 - 50 - left  # the resized photo is 100 wide
    picture = noise_picture((200, 100))
    assert np.array_equal(np.asarray(crops.cut(picture, mirrored)), np.asarray(crops.cut(picture, view))[:, ::-1])


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (1024, 64), (64, 16), (128, 32)])
def test_buckets_keep_the_area_and_divide_evenly(resolution, step):
    sizes = crops.bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes
    assert all((height, width) in sizes for width, height in sizes)
    for width, height in sizes:
        assert width % step == 0 and height % step == 0
        assert 0.6 * resolution**2 < width * height <= resolution**2


def test_a_portrait_gets_a_portrait_bucket_and_loses_little():
    assert crops.bucket((3000, 4000), 512, 64) == (448, 576)
    assert crops.bucket((1000, 1000), 512, 64) == (512, 512)
    view = crops.center((3000, 4000), (448, 576))
    assert crops.kept_share((3000, 4000), view) > 0.95


def test_masks_have_mean_one_and_follow_the_crop():
    mask = Image.new("L", (100, 60), 0)
    mask.paste(255, (50, 0, 100, 60))
    weights = crops.cut_mask(mask, crops.center((100, 60), (64, 64)), (8, 8))
    assert weights.shape == (1, 8, 8) and weights.mean().item() == pytest.approx(1)
    assert weights[0, :, :4].max() == 0 and weights[0, :, 4:].min() == pytest.approx(2)
    mirrored = crops.cut_mask(mask, crops.View((100, 60), (20, 0, 80, 60), (64, 64), flip=True), (8, 8))
    assert torch.equal(mirrored, weights.flip(-1))


def test_pixels_reach_from_minus_one_to_one():
    picture = Image.new("RGB", (2, 1), "white")
    picture.putpixel((1, 0), (0, 0, 0))
    assert torch.equal(crops.pixels(picture)[:, 0], torch.tensor([[1.0, -1.0]] * 3))


def test_colour_factors_of_one_change_nothing():
    picture = noise_picture((16, 16))
    assert crops.change_colors(picture, (1.0, 1.0, 1.0)) is picture
    brighter = np.asarray(crops.change_colors(picture, (1.5, 1.0, 1.0)), dtype=int)
    assert brighter.mean() > np.asarray(picture, dtype=int).mean()


def test_a_mask_outside_the_crop_weighs_nothing():
    mask = Image.new("L", (200, 80), 0)
    mask.paste(255, (0, 0, 20, 80))
    assert not crops.cut_mask(mask, crops.center((200, 80), (64, 64)), (8, 8)).any()
    assert crops.cut_mask(mask, crops.place((200, 80), (64, 64), 0.0, 0.5), (8, 8)).mean() == 1
