"""What a person leafing through the photos would see: the same one twice, a burst, a blurred one, a black one."""

from importlib.util import find_spec

import numpy as np
import pytest
from photos import SUBJECTS, folder_of, noise_picture, scan
from PIL import Image, ImageFilter

from trainer.data.looks import bursts, look

burst = pytest.mark.skipif(find_spec("imagehash") is None, reason="imagehash is not installed")
subjects = pytest.mark.skipif(not SUBJECTS.is_dir(), reason="the subject photos are not beside this checkout")


def textured(size=(320, 320), seed=0):
    """A sharp picture: coarse colours with edges at every fifth pixel."""
    coarse = np.asarray(noise_picture(size, seed), dtype=np.int16)
    grain = np.random.default_rng(seed).integers(-40, 41, (size[1] // 5, size[0] // 5, 1)).repeat(5, 0).repeat(5, 1)
    return Image.fromarray((coarse + grain).clip(0, 255).astype(np.uint8))


def moved(picture, pixels, seed=0):
    """The next frame of a burst: moved a little, with its own noise."""
    width, height = picture.size
    shifted = picture.crop((pixels, pixels // 2, width, height)).resize(picture.size)
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    return Image.fromarray((np.asarray(shifted) + noise).clip(0, 255).astype(np.uint8))


@burst
def test_frames_of_one_burst_are_one_group_and_other_photos_are_none():
    one, other = textured(seed=1), textured(seed=2)
    frames = [one, other, *(moved(one, 2 * i, i) for i in (1, 2, 3))]
    assert list(bursts([look(frame) for frame in frames])) == [[0, 2, 3, 4]]


@burst
def test_a_burst_among_photos_is_named_and_kept(tmp_path):
    one = textured()
    for i in range(3):
        moved(one, 2 * i, i).save(tmp_path / f"IMG_{i}.png")
    textured(seed=5).save(tmp_path / "other.png")
    found = scan(tmp_path)
    assert len(found.photos) == 4
    assert any("IMG_0.png, IMG_1.png, IMG_2.png look alike" in problem for problem in found.problems)


@burst
@subjects
@pytest.mark.parametrize("name", ["dog", "teapot"])
def test_real_photos_of_one_subject_are_neither_alike_nor_blurred(name):
    assert not [p for p in scan(SUBJECTS / name, 512).problems if "alike" in p or "blurred" in p or "nearly" in p]


@subjects
def test_a_real_photo_out_of_focus_is_blurred_and_a_sharp_subject_before_a_soft_ground_is_not():
    with Image.open(SUBJECTS / "dog" / "00.jpg") as opened:
        photo = opened.convert("RGB")
    soft = photo.filter(ImageFilter.GaussianBlur(photo.width / 200))
    assert "blurred" in look(soft).complaint() and not look(photo).complaint()
    box = tuple(round(side * share) for share, side in zip((0.3, 0.3, 0.75, 0.75), photo.size * 2, strict=True))
    soft.paste(photo.crop(box), box)
    assert not look(soft).complaint()


@pytest.mark.parametrize(
    "picture, words",
    [
        (textured().point(lambda value: value // 40), "nearly black"),
        (textured().point(lambda value: 240 + value // 50), "nearly one colour"),
        (textured().filter(ImageFilter.GaussianBlur(6)), "blurred"),
        (textured(), ""),
        (textured((200, 200)).filter(ImageFilter.GaussianBlur(6)), ""),  # too small to tell
    ],
)
def test_what_teaches_nothing_good_is_named_with_what_it_does(picture, words):
    complaint = look(picture).complaint()
    assert words in complaint and bool(words) == bool(complaint)


def test_a_picture_of_one_colour_is_left_out(tmp_path):
    folder_of(tmp_path, 2)
    Image.new("RGB", (96, 80), "black").save(tmp_path / "black.png")
    Image.new("RGB", (96, 80), (255, 255, 254)).save(tmp_path / "white.webp", lossless=True)
    found = scan(tmp_path)
    assert [left.name for left in found.left] == ["black.png", "white.webp"] and len(found.photos) == 2
    assert "black.png is left out: it is one colour everywhere" in found.problems


def test_one_picture_in_four_formats_counts_once_and_a_retouched_one_counts(tmp_path):
    picture = textured()
    for suffix in ("png", "jpg", "webp", "bmp"):
        picture.save(tmp_path / f"a.{suffix}", quality=90)
    picture.point(lambda value: min(255, value + 8)).save(tmp_path / "b.png")
    found = scan(tmp_path)
    assert [photo.name for photo in found.photos] == ["a.bmp", "b.png"]
    assert sum("the same picture as a.bmp, saved again" in problem for problem in found.problems) == 3


def test_the_same_picture_with_other_words_is_another_lesson(tmp_path):
    textured().save(tmp_path / "a.png")
    textured().save(tmp_path / "b.jpg", quality=95)
    (tmp_path / "b.txt").write_text("hta dog, painted")
    assert len(scan(tmp_path).photos) == 2
    (tmp_path / "a (1).png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.txt").write_text("hta dog asleep")
    (said,) = [text for text in scan(tmp_path).problems if "again with other words" in text]
    assert said.startswith("a.png is a (1).png, again") and "both are trained on" in said
