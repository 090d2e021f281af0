"""Pictures of other prompts beside class images: how many, of which prompts, drawn once and known by their words."""

import pytest
import torch
from photos import finish, settings

from trainer.data.texts import encode_prompts
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.errors import ConfigError
from trainer.events import PhaseStarted
from trainer.models import FAMILIES, SD1
from trainer.policy import Drawing
from trainer.prior import images, others
from trainer.settings import keeping

WORDS = ["a photo of a car", "an oil painting of a boat"]


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


def drawn(parts, folder, share=0.5):
    listed = folder / "mine.txt"
    listed.write_text("# things\n" + "\n".join([*WORDS, "", "a photo of a dog", WORDS[0]]), encoding="utf-8")
    config = settings(folder, prior__num_class_images=4, prior__others=share, prior__others_prompts=str(listed))
    texts = finish(encode_prompts(parts, ["a photo of a dog", *WORDS, ""], "cpu"))[1]
    painter = Painter(parts, Look((64, 64)), Drawing(), torch.device("cpu"), texts)
    mine = finish(images.ensure(painter, config, images.folder_for(parts, config, folder)))[1]
    return mine, *finish(others.beside(mine, painter, config, folder))


def test_they_are_drawn_once_each_with_its_own_words_and_class_images_stay_as_they_are(parts, tmp_path):
    mine, _, found = drawn(parts, tmp_path)
    assert [photo.prompt for photo in found.photos] == [WORDS[0]] * 2 + [WORDS[1]] * 2 + ["a photo of a dog"] * 4
    assert found.photos[4:] == mine.photos and set(found.prompts) == {*WORDS, "a photo of a dog"}
    assert len({photo.digest for photo in found.photos}) == 8
    _, events, again = drawn(parts, tmp_path)
    assert [photo.digest for photo in again.photos] == [photo.digest for photo in found.photos]
    assert all(event.total == 0 for event in events if isinstance(event, PhaseStarted))


def test_the_class_itself_empty_lines_and_what_stands_twice_are_no_other_prompts(parts, tmp_path):
    drawn(parts, tmp_path)
    config = settings(tmp_path, prior__others_prompts=str(tmp_path / "mine.txt"))
    assert others.prompts(config, "sd1") == WORDS


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 1]), (5, [2, 2, 1]), (3, [1, 1, 1]), (1, [1])])
def test_prompts_share_the_pictures_evenly(count, expected):
    words = ["a", "b", "c"]
    found = others.shares(words, count)
    assert [*found.values()] == expected and set(found) <= set(words)


def test_a_long_list_is_thinned_out_and_not_cut_off():
    assert [*others.shares([str(i) for i in range(10)], 3)] == ["0", "3", "6"]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 16), (0.2, 4), (0.8, 64)])
def test_the_share_is_that_of_the_whole_deck(share, count):
    assert keeping.others(16, share) == count


def test_every_family_has_a_list(tmp_path):
    for name in ("demo", *(family.name for family in FAMILIES)):
        assert len(others.prompts(settings(tmp_path), name)) > 10
    measured = {
        "a photo of a car",
        "a photo of a tree",
        "a photo of a house",
        "a photo of a flower",
        "a photo of a cup",
    }
    assert not measured & set(others.prompts(settings(tmp_path), "demo"))


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="names no prompt"):
        others.prompts(settings(tmp_path, prior__others_prompts=str(tmp_path / "empty.txt")), "sd1")
