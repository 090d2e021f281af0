"""Scenes show what their captions say, and what is held out stays out."""

import numpy as np
import pytest
from trainer.benchmarks.demo import backgrounds, scenes
from trainer.benchmarks.demo.cutouts import Design

CLASSES = ("ant", "dog")


@pytest.fixture
def cutout():
    """A grey disc with a black rim on nothing."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    r = np.hypot(x, y)
    made = np.zeros((48, 48, 4), np.float32)
    made[..., :3] = np.where(r < 0.7, 0.5, 0.0)[..., None]
    made[..., 3] = r < 0.8
    return made


def captions(shows: np.ndarray, rare: tuple[str, ...] = (), count: int = 300) -> set[str]:
    rng = np.random.default_rng(0)
    return {scenes.caption(rng, shows, CLASSES, rare) for _ in range(count)}


def test_a_caption_names_the_class_the_colour_and_mostly_the_context():
    colour, context = next(iter(backgrounds.COLOURS)), backgrounds.CONTEXTS[2]
    made = captions(np.array([1, 0, 2, 0]))
    assert all("dog" in words and colour in words for words in made)
    assert f"a photo of a {colour} dog {context}" in made
    assert any(context not in words for words in made)


def test_the_article_follows_the_word_behind_it():
    made = captions(np.array([0, 0, 0, scenes.NO_COLOUR]))
    assert all("an ant" in words for words in made)
    assert any("a zwx ant" in words for words in captions(np.array([0, 0, 0, scenes.NO_COLOUR]), ("zwx",)))


def test_a_drawing_is_held_out_by_its_own_name_whatever_else_there_is():
    some = [Design(name, f"{name}-{i}", "twemoji") for name in CLASSES for i in range(40)]
    few, many = scenes.split(some[:40], set()), scenes.split(some, set())
    assert {d.key for d in few.held_out} <= {d.key for d in many.held_out}
    assert not {d.key for d in many.train} & {d.key for d in many.held_out}
    assert len(many.pairs) == len(CLASSES)


def test_a_subject_never_trains():
    some = [Design("dog", f"dog-{i}", "twemoji") for i in range(40)]
    trained = scenes.split(some, set()).train[0]
    assert trained.key in {d.key for d in scenes.split(some, {trained.key}).held_out}


def test_a_tint_takes_the_body_to_the_colour_and_leaves_what_is_not_drawn(cutout):
    red = scenes.tint(cutout, (255, 0, 0))
    assert np.array_equal(red[..., 3], cutout[..., 3])
    body = red[24, 24]
    assert body[0] > 0.8 and body[1] < 0.3 and body[2] < 0.3


def test_a_composed_scene_keeps_its_background_at_the_rim_and_shows_the_drawing_in_the_middle(cutout):
    ground = np.full((64, 64, 3), 0.9, np.float32)
    made = scenes.compose(cutout, ground, np.random.default_rng(0), shadow=0.35)
    assert made.shape == ground.shape and made.min() >= 0 and made.max() <= 1.001
    assert np.allclose(made[0, 0], 0.9, atol=0.02) and np.allclose(made[32, 32], 0.5, atol=0.05)
