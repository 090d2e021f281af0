"""Variants of photos: few, fixed, and independent of each other."""

import pytest

from trainer.data.augment import recommendation, views
from trainer.settings.config import Config, Data, Train

PHOTO, DIGEST = (1000, 800), "ab" * 32


def test_without_augmentation_there_is_one_centred_view():
    (view,) = views(PHOTO, DIGEST, Data(), (512, 512), 0)
    assert view.box == (100, 0, 900, 800) and not view.flip and view.color == (1, 1, 1)


def test_a_flip_doubles_the_views():
    plain, mirrored = views(PHOTO, DIGEST, Data(random_flip=True), (512, 512), 0)
    assert plain.box == mirrored.box and (plain.flip, mirrored.flip) == (False, True)


@pytest.mark.parametrize("data", [Data(crop="random"), Data(crop_jitter=0.2), Data(color_jitter=0.3)])
def test_variants_follow_seed_and_photo_and_more_of_them_keep_the_first(data):
    first = views(PHOTO, DIGEST, data, (512, 512), 0)
    assert len(first) == data.crop_variants
    assert first == views(PHOTO, DIGEST, data, (512, 512), 0)
    assert first != views(PHOTO, DIGEST, data, (512, 512), 1)
    assert first != views(PHOTO, "cd" * 32, data, (512, 512), 0)
    more = data.model_copy(update={"crop_variants": 9})
    assert views(PHOTO, DIGEST, more, (512, 512), 0)[:4] == first


@pytest.mark.parametrize(
    "data", [Data(crop="random", crop_jitter=0.5, crop_variants=32), Data(crop_jitter=0.5, crop_variants=32)]
)
@pytest.mark.parametrize("photo", [(1000, 800), (800, 1000), (512, 512), (300, 200)])
def test_crops_never_leave_the_photo_and_keep_their_shape(data, photo):
    for view in views(photo, DIGEST, data, (512, 512), 3):
        left, upper, right, lower = view.box
        assert 0 <= left < right <= photo[0] and 0 <= upper < lower <= photo[1]
        assert right - left == pytest.approx(lower - upper, abs=0.01)


def test_jitter_stays_near_the_centre():
    for view in views(PHOTO, DIGEST, Data(crop_jitter=0.1, crop_variants=32), (512, 512), 0):
        middle = (view.box[0] + view.box[2]) / 2, (view.box[1] + view.box[3]) / 2
        assert abs(middle[0] - 500) <= 0.05 * 800 + 1 and abs(middle[1] - 400) <= 0.05 * 800 + 1
        assert view.box[2] - view.box[0] >= 800 / 1.1 - 1


def test_a_square_photo_without_jitter_has_only_one_random_crop():
    assert len(views((512, 512), DIGEST, Data(crop="random"), (512, 512), 0)) == 1


def test_colour_jitter_leaves_the_first_variant_as_it_is():
    first, *rest = views(PHOTO, DIGEST, Data(color_jitter=0.2), (512, 512), 0)
    assert first.color == (1, 1, 1) and all(view.color != (1, 1, 1) for view in rest)
    assert all(0.8 <= factor <= 1.2 for view in rest for factor in view.color)


def test_advice_is_given_for_few_photos_only_and_not_twice():
    flipped = Config(data=Data(random_flip=True))
    assert "--random_flip" in recommendation(3, Config())
    assert "--max_train_steps" in recommendation(1, Config()) and "--method lora" in recommendation(1, Config())
    assert recommendation(5, Config()) == ""
    assert recommendation(3, flipped) == ""


def test_two_hundred_photos_get_the_advice_of_a_data_set():
    advice = recommendation(200, Config(data=Data(random_flip=True)))
    assert all(
        word in advice for word in ("caption", "--no-with_prior_preservation", "--num_train_epochs", "--method lora")
    )
    assert recommendation(40, Config()) == ""


def test_who_trains_an_adapter_is_not_advised_to():
    adapter = Config(train=Train(method="lora"))
    assert not any("--method lora" in recommendation(count, adapter) for count in (1, 200))
