"""Class images: drawn once, counted, topped up, never overwritten, never mixed silently."""

import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from photos import finish, folder_of, noise_picture, settings
from PIL import Image

from trainer.data.texts import encode_prompts
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import Notice, PhaseEnded, PhaseProgress, PhaseStarted
from trainer.files.claim import is_claim
from trainer.models import SD1, SDXL
from trainer.policy import Drawing
from trainer.prior import images as prior
from trainer.prior import manifest, turn


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


@pytest.fixture(scope="module")
def texts(parts):
    return finish(encode_prompts(parts, ["a photo of a dog", ""], "cpu"))[1]


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
    written = json.loads((tmp_path / manifest.MANIFEST).read_text())
    assert written["settings"] == {"model": parts.digest, "predicts": "epsilon", "prompt": "a photo of a dog", "seed": 0, "size": 64,
                                    "sampler": "dpm++", "steps": 2, "guidance": 7.5}  # fmt: skip
    assert set(written["images"]) == set(contents(tmp_path))


def test_existing_pictures_are_reused(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path)
    before = contents(tmp_path)
    events, photos = ensure(parts, texts, tmp_path)
    assert drawn(events) == 0 and contents(tmp_path) == before and len(photos.photos) == 3
    assert "0 class images drawn, 3 reused: 3 different" in [
        event.detail for event in events if isinstance(event, PhaseEnded)
    ]


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
    mine, before = edited.read_bytes(), [photo.digest for photo in photos.photos]
    events, again = ensure(parts, texts, tmp_path, 2)
    assert edited.read_bytes() == mine and len(contents(tmp_path)) == 3
    assert [
        photo.digest for photo in again.photos
    ] == before  # training sees the picture that was drawn, not the edited one
    assert any(isinstance(event, Notice) and edited.name in event.text for event in events)
    assert [photo.digest for photo in ensure(parts, texts, tmp_path, 2)[1].photos] == before


def test_the_users_own_pictures_count_and_come_first(parts, texts, tmp_path):
    folder_of(tmp_path, 2)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8")
    before = contents(tmp_path)
    events, photos = ensure(parts, texts, tmp_path, 3)
    assert [photo.name for photo in photos.photos[:2]] == ["00.png", "01.png"] and len(photos.photos) == 3
    assert drawn(events) == 2  # one picture of two steps: the broken file does not count
    assert any(isinstance(event, Notice) and "2 of your own pictures" in event.text for event in events)
    assert before.items() <= contents(tmp_path).items()


def test_enough_pictures_of_ones_own_need_no_drawing_and_none_is_cut_off(parts, texts, tmp_path):
    folder_of(tmp_path, 4)
    events, photos = ensure(parts, {}, tmp_path, 3)
    assert drawn(events) == 0 and len(photos.photos) == 4
    assert any(isinstance(event, Notice) and "it takes none away" in event.text for event in events)


def own_folder(folder, **changes):
    """Settings that name `folder` for class images and leave their number open."""
    return settings(folder, prior__class_data_dir=str(folder), **changes)


def test_a_folder_of_ones_own_is_used_whole_and_nothing_is_drawn_into_it(parts, texts, tmp_path):
    mine, cache = folder_of(tmp_path / "mine", 2), tmp_path / "cache"
    config = own_folder(mine)
    where = prior.folder_for(parts, config, cache)
    events, photos = ensure(parts, {}, where, None, config)
    assert (
        drawn(events) == 0
        and len(photos.photos) == 2
        and sorted(p.name for p in mine.iterdir()) == ["00.png", "01.png"]
    )
    config.settle("prior.num_class_images", 4, "flag --num_class_images")  # asked for, they are drawn: elsewhere
    events, photos = ensure(parts, texts, where, None, config)
    assert drawn(events) == 2 * 2 and len(photos.photos) == 4 and cache in where.parents
    assert sorted(path.name for path in mine.iterdir()) == ["00.png", "01.png"]
    events, photos = ensure(parts, {}, where, None, own_folder(mine))
    assert [photo.name for photo in photos.photos] == ["00.png", "01.png"], (
        "what the cache holds for others is not asked for"
    )
    assert "0 class images drawn, 0 reused, 2 your own: 2 different" in [
        e.detail for e in events if isinstance(e, PhaseEnded)
    ]


def test_kohyas_folders_of_class_images_bring_words_repeats_and_captions(parts, texts, tmp_path):
    folder_of(tmp_path / "reg" / "1_dog", 2)
    folder_of(tmp_path / "reg" / "3_a puppy", 4)
    (tmp_path / "reg" / "3_a puppy" / "03.txt").write_text("a puppy on grass")
    config = own_folder(tmp_path / "reg")
    where = prior.folder_for(parts, config, tmp_path / "cache")
    events, found = ensure(parts, {}, where, None, config)
    assert drawn(events) == 0, "nothing is drawn where somebody keeps pictures of their own"
    told = [(photo.name, photo.prompt, photo.repeats) for photo in found.photos]
    assert told[:3] == [("00.png", "dog", 1), ("01.png", "dog", 1), ("00.png", "a puppy", 3)]
    assert told[-1] == ("03.png", "a puppy on grass", 3)
    config.settle("prior.class_prompt", "a photo of a dog", "flag --class_prompt")  # what was typed counts before names
    prompts = [photo.prompt for photo in ensure(parts, {}, where, None, config)[1].photos]
    assert prompts == ["a photo of a dog"] * 3 + ["a puppy on grass"]  # two of the puppies are the dogs again


def test_class_images_sorted_into_plain_folders_count_too(parts, texts, tmp_path):
    folder_of(tmp_path / "class" / "small", 1)
    folder_of(tmp_path / "class" / "2023_large", 3)
    config = own_folder(tmp_path / "class")
    events, found = ensure(parts, {}, prior.folder_for(parts, config, tmp_path / "cache"), None, config)
    # the small one is byte for byte the first of the large ones
    assert drawn(events) == 0 and [photo.repeats for photo in found.photos] == [1, 1, 1]
    assert found.prompts == ["a photo of a dog"]


def test_another_seed_of_training_draws_no_class_image_anew(parts, texts, tmp_path):
    config = own_folder(tmp_path / "class", prior__class_seed=3)
    first = ensure(parts, texts, tmp_path / "class", 2, config, batch=1)[1]
    config = own_folder(tmp_path / "class", train__seed=7)
    manifest.check_early(config, 64)
    events, again = ensure(parts, texts, tmp_path / "class", 3, config, batch=1)  # the folder goes on as it was begun
    assert drawn(events) == 2 and [p.digest for p in again.photos[:2]] == [p.digest for p in first.photos]
    assert prior.folder_for(parts, settings(tmp_path), tmp_path) == prior.folder_for(
        parts, settings(tmp_path, train__seed=7), tmp_path
    )


def test_black_and_blank_class_images_are_named_together(parts, texts, tmp_path):
    folder_of(tmp_path / "class", 4)
    for index, level in enumerate((0, 0, 255)):
        Image.new("RGB", (64, 64), (level, level, index)).save(tmp_path / "class" / f"blank{index}.png")
    for index in range(3):
        dark = np.random.default_rng(index).integers(0, 12, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(dark).save(tmp_path / "class" / f"dark{index}.png")
    config = own_folder(tmp_path / "class")
    events, found = ensure(parts, {}, prior.folder_for(parts, config, tmp_path / "cache"), None, config)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert len(found.photos) == 7
    assert any("3 class images" in text and "one colour" in text and "blank1.png" in text for text in said)
    assert any("3 of 7 pictures" in text and "nearly black" in text and "dark2.png" in text for text in said)


def test_every_class_picture_of_a_run_is_written_down(parts, texts, tmp_path):
    folder_of(tmp_path / "reg" / "2_dog", 2)
    config = own_folder(tmp_path / "reg")
    found = ensure(parts, texts, prior.folder_for(parts, config, tmp_path / "cache"), 3, config)[1]
    manifest.record(tmp_path, found)
    rows = json.loads((tmp_path / manifest.USED).read_text())["images"]
    assert [(row["prompt"], row["repeats"]) for row in rows] == [("dog", 2), ("dog", 2), ("a photo of a dog", 1)]
    assert all(hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest() == row["digest"] for row in rows)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("prior__class_prompt", "a dog"),
        ("prior__class_seed", 1),
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
    manifest.check_early(config, 64)
    with pytest.raises(ConfigError, match="size: 64 there, 128 now"):
        manifest.check_early(config, 128)
    config.prior.class_data_dir = str(tmp_path / "file")
    with pytest.raises(ConfigError, match="is a file"):
        manifest.check_early(config, 64)
    config.prior.class_data_dir = str(tmp_path / "new")
    manifest.check_early(config, 64)
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


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "emptied": lambda text: "",
    "another index": lambda text: text.replace('"index": 1', '"index": 0'),
    "another seed": lambda text: text.replace('"seed": 0', '"seed": 1'),
    "another shape": lambda text: '{"settings": {}, "images": [1]}',
    "deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_is_made_again_in_the_cache_and_refused_in_a_named_folder(parts, texts, tmp_path, kind):
    _, first = ensure(parts, texts, tmp_path)
    path, before = tmp_path / manifest.MANIFEST, contents(tmp_path)
    path.write_text(DAMAGE[kind](path.read_text()))
    named = settings(tmp_path, prior__class_data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="damaged"):
        ensure(parts, texts, tmp_path, config=named)
    events, again = ensure(parts, texts, tmp_path)
    assert drawn(events) == 0 and contents(tmp_path) == before
    assert [photo.digest for photo in again.photos] == [photo.digest for photo in first.photos]


def test_a_manifest_of_an_older_version_is_read(parts, texts, tmp_path):
    ensure(parts, texts, tmp_path)
    path = tmp_path / manifest.MANIFEST
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps(values))
    named = settings(tmp_path, prior__class_data_dir=str(tmp_path))
    assert drawn(ensure(parts, texts, tmp_path, config=named)[0]) == 0


@pytest.mark.parametrize(("batch", "named"), [(1, False), (4, True)])
def test_a_kill_at_any_file_leaves_pictures_that_the_next_start_knows_as_drawn(parts, texts, tmp_path, batch, named):
    """At every moment of filling the folder a copy of it is taken, and filled up by another start. In a folder that somebody
    named, a drawn picture without its row is one of theirs; in the cache, names alone tell."""
    moments, copying = [], False

    def filled(folder):
        config = settings(folder, prior__class_data_dir=str(folder)) if named else settings(folder)
        return ensure(parts, texts, folder, 6, config, batch=batch)

    def hook(event, arguments):
        nonlocal copying
        names = [str(argument) for argument in arguments[:2]]
        if copying and event in ("os.rename", "open") and any(name.startswith(str(tmp_path / "run")) for name in names):
            copying = False
            moments.append(shutil.copytree(tmp_path / "run", tmp_path / f"moment-{len(moments)}"))
            copying = True

    (tmp_path / "run").mkdir()
    sys.addaudithook(hook)
    copying = True
    whole = filled(tmp_path / "run")[1]
    copying = False
    assert len(moments) >= 6 * 4
    expected = [photo.digest for photo in whole.photos]
    for moment in moments[:: 1 if batch == 4 else 7]:
        events, photos = filled(moment)
        assert not any(isinstance(event, Notice) for event in events), moment
        assert [photo.digest for photo in photos.photos] == expected and len(contents(moment)) == 6
        assert all(map(is_claim, moment.glob(".*")))


def test_a_copy_among_ones_own_pictures_is_named_and_one_more_is_drawn_for_it(parts, texts, tmp_path):
    folder_of(tmp_path, 2)
    shutil.copy(tmp_path / "00.png", tmp_path / "again.png")
    noise_picture((96, 80), 1).save(tmp_path / "saved again.bmp")
    events, found = ensure(parts, texts, tmp_path, 3)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert any("2 class images" in text and "again.png, saved again.bmp" in text for text in said)
    assert drawn(events) == 2 and len(found.photos) == len({photo.digest for photo in found.photos}) == 3


def test_an_interrupted_run_keeps_what_was_drawn(parts, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "CHUNK", 1)
    stage = prior.ensure(painter_of(parts, texts, batch=1), settings(tmp_path), tmp_path, count=3)
    for event in stage:
        if isinstance(event, PhaseProgress) and event.done == 3:  # in the middle of the second picture
            stage.close()
    assert len(contents(tmp_path)) == 1
    events, photos = ensure(parts, texts, tmp_path, 3, batch=1)
    assert drawn(events) == 2 * 2 and len(photos.photos) == 3


def waits(events):
    return [event.text for event in events if isinstance(event, Notice) and "waits for it" in event.text]


def test_the_second_of_two_waits_for_what_the_first_draws_and_draws_only_what_is_missing(
    parts, texts, tmp_path, monkeypatch
):
    """Batches of other sizes draw pictures with other last bits, whose names are others: as two presets of one subject."""
    monkeypatch.setattr(turn, "POLL_SECONDS", 0)
    monkeypatch.setattr(prior, "CHUNK", 1)
    first = prior.ensure(painter_of(parts, texts, batch=1), settings(tmp_path), tmp_path, count=3)
    events = [next(first)]
    while not contents(tmp_path):
        events.append(next(first))
    second = prior.ensure(painter_of(parts, texts, batch=4), settings(tmp_path), tmp_path, count=4)
    meanwhile = [next(second) for _ in range(9)]
    assert len(contents(tmp_path)) == 1 and len(waits(meanwhile)) == 1, (
        "it looks again when the other is done, not before"
    )

    one = finish(first)[1]
    rest, two = finish(second)
    assert not waits(rest) and not any(isinstance(event, Notice) for event in rest)
    assert "1 class images drawn, 3 reused: 4 different" in [e.detail for e in rest if isinstance(e, PhaseEnded)]
    assert [photo.digest for photo in two.photos[:3]] == [photo.digest for photo in one.photos]
    assert set(manifest.Manifest.read(tmp_path).images) == set(contents(tmp_path)) and len(contents(tmp_path)) == 4


def test_a_folder_that_cannot_be_written_is_read_without_a_lock(parts, texts, tmp_path, monkeypatch):
    before = ensure(parts, texts, tmp_path)[1]

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    events, again = ensure(parts, {}, tmp_path)
    assert drawn(events) == 0 and not waits(events)
    assert [photo.digest for photo in again.photos] == [photo.digest for photo in before.photos]


def test_two_pictures_of_one_index_are_not_called_changed(parts, texts, tmp_path):
    """As two runs left that drew at once, before one of them waited."""
    ensure(parts, texts, tmp_path, 2)
    noise_picture((64, 64), 5).save(other := tmp_path / "other.png")
    sha = manifest.digest_of(other)
    other.rename(tmp_path / f"00000-{sha[:12]}.png")
    events, photos = ensure(parts, texts, tmp_path, 2)
    assert drawn(events) == 0 and len(photos.photos) == 2
    assert not any(isinstance(event, Notice) for event in events)


def test_sdxl_draws_too(tmp_path):
    parts = SDXL.tiny()
    texts = finish(encode_prompts(parts, ["a photo of a dog", ""], "cpu"))[1]
    assert len(ensure(parts, texts, tmp_path, 1)[1].photos) == 1
