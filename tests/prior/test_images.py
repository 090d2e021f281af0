"""Class images: drawn once, counted, topped up, never overwritten, never mixed silently."""

import hashlib
import json

import numpy as np
import pytest
import torch
from photos import finish, folder_of, noise_picture, settings
from PIL import Image

from trainer.data import encode as cache
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import Notice, PhaseEnded, PhaseProgress, PhaseStarted
from trainer.models import SD1, SDXL
from trainer.policy import Drawing
from trainer.prior import images as prior


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


@pytest.fixture(scope="module")
def texts(parts):
    return finish(cache.encode_prompts(parts, ["a photo of a dog", ""], "cpu", None))[1]


def ensure(parts, texts, folder, count=3, config=None, **more):
    config = config or settings(folder)
    return finish(prior.ensure(painter_of(parts, texts, **more), config, folder, count=count))


def painter_of(parts, texts, batch=4):
    return Painter(parts, Look((64, 64)), Drawing(batch=batch), torch.device("cpu"), texts)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def drawn(events):
    """Denoising steps that were announced."""
    return next(event.total for event in events if isinstance(event, PhaseStarted))


def test_the_folder_is_filled_with_progress_and_a_manifest(parts, texts, tmp_path):
    events, photos = ensure(parts, texts, tmp_path)
    assert len(photos.photos) == 3 and photos.prompts == ["a photo of a dog"]
    assert {photo.size for photo in photos.photos} == {(64, 64)}
    progress = [event.done for event in events if isinstance(event, PhaseProgress)]
    assert progress == sorted(progress) and progress[-1] == drawn(events) == 3 * 2
    manifest = json.loads((tmp_path / prior.MANIFEST).read_text())
    assert manifest["settings"] == {"model": parts.digest, "predicts": "epsilon", "prompt": "a photo of a dog", "seed": 0, "size": 64,
                                    "sampler": "dpm++", "steps": 2, "guidance": 7.5}  # fmt: skip
    assert set(manifest["images"]) == set(contents(tmp_path))


def test_existing_pictures_are_reused(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path)
    before = contents(tmp_path)
    events, photos = ensure(parts, texts, tmp_path)
    assert drawn(events) == 0 and contents(tmp_path) == before and len(photos.photos) == 3
    assert "0 class images drawn, 3 reused" in [event.detail for event in events if isinstance(event, PhaseEnded)]


def test_reuse_needs_no_embeddings(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path)
    assert len(ensure(parts, {}, tmp_path)[1].photos) == 3


def test_topping_up_gives_the_pictures_of_drawing_all_at_once(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path / "a", 2, batch=2)
    ensure(parts, texts, tmp_path / "a", 4, batch=2)
    ensure(parts, texts, tmp_path / "b", 4, batch=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_deleted_picture_is_drawn_again_as_it_was(parts, texts, tmp_path):
    _, photos = ensure(parts, texts, tmp_path, batch=1)
    before = contents(tmp_path)
    (tmp_path / photos.photos[1].name).unlink()
    ensure(parts, texts, tmp_path, batch=1)
    assert contents(tmp_path) == before


def test_pictures_hardly_depend_on_the_batch_they_are_drawn_in(parts, texts, tmp_path):
    one = ensure(parts, texts, tmp_path / "a", batch=1)[1]
    three = ensure(parts, texts, tmp_path / "b", batch=3)[1]
    for a, b in zip(one.photos, three.photos, strict=True):
        difference = np.asarray(Image.open(a.path), dtype=int) - np.asarray(Image.open(b.path), dtype=int)
        assert np.abs(difference).max() <= 1  # rounding of batched matrix products


def test_fewer_wanted_pictures_take_the_first_ones_and_delete_nothing(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path, 3)
    _, photos = ensure(parts, texts, tmp_path, 2)
    assert [photo.name[:5] for photo in photos.photos] == ["00000", "00001"] and len(contents(tmp_path)) == 3


def test_a_picture_edited_by_the_user_is_kept_and_its_place_drawn_anew(parts, texts, tmp_path):
    _, photos = ensure(parts, texts, tmp_path, 2)
    edited = tmp_path / photos.photos[0].name
    noise_picture((64, 64), 5).save(edited)
    mine = edited.read_bytes()
    ensure(parts, texts, tmp_path, 2)
    assert edited.read_bytes() == mine and len(contents(tmp_path)) == 3


def test_the_users_own_pictures_count_and_come_first(parts, texts, tmp_path):
    folder_of(tmp_path, 2)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8")
    before = contents(tmp_path)
    events, photos = ensure(parts, texts, tmp_path, 3)
    assert [photo.name for photo in photos.photos[:2]] == ["00.png", "01.png"] and len(photos.photos) == 3
    assert drawn(events) == 2  # one picture of two steps: the broken file does not count
    assert any(isinstance(event, Notice) and "2 of your own pictures" in event.text for event in events)
    assert before.items() <= contents(tmp_path).items()


def test_enough_pictures_of_ones_own_need_no_drawing(parts, texts, tmp_path):
    folder_of(tmp_path, 4)
    events, photos = ensure(parts, {}, tmp_path, 3)
    assert drawn(events) == 0 and len(photos.photos) == 3


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("prior__class_prompt", "a dog"),
        ("train__seed", 1),
        ("data__resolution", 32),
        ("prior__sample_steps", 3),
        ("prior__guidance_scale", 5.0),
    ],
)
def test_a_folder_made_in_another_way_is_refused_by_name_of_the_difference(parts, texts, tmp_path, knob, value):
    ensure(parts, texts, tmp_path, 1)
    before = contents(tmp_path)
    config = settings(tmp_path, **{knob: value})
    with pytest.raises(ConfigError, match=repr(value)) as error:
        ensure(parts, texts, tmp_path, 1, config)
    assert "--class_data_dir" in error.value.fix and contents(tmp_path) == before


def test_a_foreign_folder_is_refused_before_a_model_is_loaded(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path / "made", 1)
    (tmp_path / "file").touch()
    config = settings(tmp_path, prior__class_data_dir=str(tmp_path / "made"))
    prior.check_early(config, 64)
    with pytest.raises(ConfigError, match="size: 64 there, 128 now"):
        prior.check_early(config, 128)
    config.prior.class_data_dir = str(tmp_path / "file")
    with pytest.raises(ConfigError, match="is a file"):
        prior.check_early(config, 64)
    config.prior.class_data_dir = str(tmp_path / "new")
    prior.check_early(config, 64)
    assert not (tmp_path / "new").exists()


def test_another_model_is_another_way(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path, 1)
    with pytest.raises(ConfigError, match="model: "):
        ensure(SD1.tiny(seed=1), texts, tmp_path, 1)


def test_without_a_folder_each_way_has_its_own(parts, tmp_path):
    config = settings(tmp_path)
    first = prior.folder_for(parts, config, tmp_path)
    assert first == prior.folder_for(parts, config, tmp_path) and "a-photo-of-a-dog" in first.name
    config.train.learning_rate = 1e-3
    assert prior.folder_for(parts, config, tmp_path) == first
    config.prior.sample_steps = 9
    assert prior.folder_for(parts, config, tmp_path) != first
    config.prior.class_data_dir = str(tmp_path / "mine")
    assert prior.folder_for(parts, config, tmp_path) == tmp_path / "mine"


def test_a_damaged_manifest_is_refused(parts, texts, tmp_path):
    (tmp_path / prior.MANIFEST).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        ensure(parts, texts, tmp_path)


def test_an_interrupted_run_keeps_what_was_drawn(parts, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "CHUNK", 1)
    stage = prior.ensure(painter_of(parts, texts, batch=1), settings(tmp_path), tmp_path, count=3)
    for event in stage:
        if isinstance(event, PhaseProgress) and event.done == 3:  # in the middle of the second picture
            stage.close()
    assert len(contents(tmp_path)) == 1
    events, photos = ensure(parts, texts, tmp_path, 3, batch=1)
    assert drawn(events) == 2 * 2 and len(photos.photos) == 3


def test_sdxl_draws_too(tmp_path):
    parts = SDXL.tiny()
    texts = finish(cache.encode_prompts(parts, ["a photo of a dog", ""], "cpu", None))[1]
    assert len(ensure(parts, texts, tmp_path, 1)[1].photos) == 1
