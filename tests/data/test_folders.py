"""Which folders count is plain, or asked."""

import pytest
from photos import folder_of, noise_picture

from trainer.data.folders import (
    candidates,
    find,
    further_down,
    masks,
    meant_as_repeats,
    name_class,
    others,
    unread_below,
)
from trainer.errors import ConfigError
from trainer.settings import overlay


def found(folder, which="auto"):
    """{folder name: (repeats, words)} of those that count."""
    return {place.folder.name: (place.repeats, place.words) for place in find(folder, which, "--photos").places}


@pytest.mark.parametrize("name", ["10_sks dog", "1_dog", "200_hta  cat", "999_x"])
def test_plausible_numbers_are_repeats(name):
    assert meant_as_repeats(name) == (int(name.split("_")[0]), " ".join(name.split("_", 1)[1].split()))


@pytest.mark.parametrize(
    "name", ["2023_holiday", "20231224_eve", "01_front", "0_dog", "1000_x", "dog", "10_", "x10_dog", "10 dog"]
)
def test_years_dates_and_places_in_a_list_are_no_repeats(name):
    assert meant_as_repeats(name) is None


def test_photos_beside_any_other_folder_are_asked_about(tmp_path):
    folder_of(tmp_path, 3)
    folder_of(tmp_path / "raw", 4)
    folder_of(tmp_path / "5_hta dog", 2)
    with pytest.raises(ConfigError) as error:
        find(tmp_path, "auto", "--photos")
    assert (
        "3 pictures and 6 pictures in the numbered folders: 5_hta dog (2) and other folders: raw (4)"
        in error.value.what
    )
    assert "--folders loose takes 3" in error.value.fix and "all 9" in error.value.fix
    assert found(tmp_path, "loose") == {tmp_path.name: (1, "")}
    assert found(tmp_path, "numbered") == {"5_hta dog": (5, "hta dog")}
    assert found(tmp_path, "all") == {tmp_path.name: (1, ""), "5_hta dog": (5, "hta dog"), "raw": (1, "")}


def test_a_year_beside_photos_is_asked_about_and_never_multiplies(tmp_path):
    folder_of(tmp_path, 3)
    folder_of(tmp_path / "2024_raw", 6)
    with pytest.raises(ConfigError, match=r"other folders: 2024_raw \(6\)"):
        find(tmp_path, "auto", "--photos")
    assert found(tmp_path, "all")["2024_raw"] == (1, "")


def test_who_asks_for_the_numbered_folders_gets_no_year_and_no_nought(tmp_path):
    for name in ("2023_holiday", "0_old", "01_front"):
        folder_of(tmp_path / name, 2)
    with pytest.raises(ConfigError, match=r"no folder in .* is numbered as '10_sks dog' is"):
        find(tmp_path, "numbered", "--photos")
    folder_of(tmp_path / "5_hta dog", 2)
    assert found(tmp_path, "numbered") == {"5_hta dog": (5, "hta dog")}
    left = {folder.name: (count, why) for folder, count, why in find(tmp_path, "numbered", "--photos").left}
    assert left == dict.fromkeys(("2023_holiday", "0_old", "01_front"), (2, "its name gives no repeats"))


def test_numbered_folders_alone_need_no_question_and_plain_ones_beside_them_are_told(tmp_path):
    folder_of(tmp_path / "10_hta dog", 2)
    folder_of(tmp_path / "left", 3)
    assert found(tmp_path) == {"10_hta dog": (10, "hta dog")}
    assert [(path.name, count) for path, count, _ in find(tmp_path, "auto", "--photos").left] == [("left", 3)]


def test_plain_folders_alone_are_asked_about(tmp_path):
    folder_of(tmp_path / "a", 3)
    with pytest.raises(ConfigError) as one:
        find(tmp_path, "auto", "--photos")
    folder_of(tmp_path / "b", 2)
    with pytest.raises(ConfigError) as two:
        find(tmp_path, "auto", "--photos")
    assert str(tmp_path / "a") in one.value.fix and "--folders all" in two.value.fix
    assert found(tmp_path, "all") == {"a": (1, ""), "b": (1, "")}


def test_folders_that_nobody_means_ask_nothing(tmp_path):
    folder_of(tmp_path, 2)
    for name in ("__MACOSX", "masks", ".thumbnails", "@eaDir"):
        folder_of(tmp_path / name, 2)
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == {tmp_path.name: (1, "")}


def test_a_folder_that_is_named_itself_may_be_numbered_but_no_year(tmp_path):
    folder_of(tmp_path / "10_hta dog", 1)
    folder_of(tmp_path / "2023_summer holiday", 1)
    folder_of(tmp_path / "3_dog", 1)
    assert found(tmp_path / "10_hta dog") == {"10_hta dog": (10, "hta dog")}
    assert found(tmp_path / "2023_summer holiday") == {"2023_summer holiday": (1, "")}
    assert found(tmp_path / "3_dog") == {"3_dog": (1, "")}


def test_pictures_that_lie_where_nobody_looks_are_counted(tmp_path):
    for name in ("2023/07/best", "2023/08", "masks/deep", "2023/.thumbnails"):
        folder_of(tmp_path / name, 2)
    assert further_down(tmp_path) == {tmp_path / "2023" / "07" / "best": 2, tmp_path / "2023" / "08": 2}
    (tmp_path / "2024_raw").mkdir()
    (tmp_path / "2024_raw" / "a.CR2").touch()
    assert list(unread_below(tmp_path)) == ["1 camera raw .cr2 in 2024_raw"]
    assert list(unread_below(tmp_path, [tmp_path / "2024_raw"])) == [], "a folder that is read counts its own"


def test_masks_of_other_programs_are_masks_only_beside_their_picture(tmp_path):
    for name in ("a.png", "B.JPG", "c.webp", "d_mask.jpg", "d.jpg"):
        noise_picture((96, 80)).save(tmp_path / name)
    for name in ("a-masklabel.png", "b_mask.png", "c-Mask.PNG", "a.mask.png", "alone_mask.png", "gone.mask.png"):
        noise_picture((96, 80)).save(tmp_path / name)
    taken = [path.name for path in candidates(tmp_path)]
    assert taken == ["B.JPG", "a.png", "alone_mask.png", "c.webp", "d.jpg", "d_mask.jpg"], "a dog may wear a mask"
    assert {stem: path.name for stem, path in masks(tmp_path).items()} == {
        "a": "a.mask.png",
        "b": "b_mask.png",
        "c": "c-Mask.PNG",
    }


def test_camera_raws_are_told_from_junk(tmp_path):
    files = [tmp_path / name for name in ("a.CR2", "b.cr2", "c.psd", "d.mp4", "Thumbs.db")]
    assert others(files) == "1 .psd, 2 camera raw .cr2"


def test_a_numbered_folder_of_class_images_names_the_class(tmp_path):
    folder_of(tmp_path / "reg" / "1_dog", 1)
    own, reg = {"data.instance_data_dir": str(tmp_path)}, {"prior.class_data_dir": str(tmp_path / "reg")}
    made = overlay.load(own | reg)
    name_class(made)
    assert made.prior.class_prompt == "dog" and made.provenance["prior.class_prompt"] == "the folder 1_dog"
    for named in (
        own | reg | {"data.class_name": "cat"},
        own | reg | {"prior.with_prior_preservation": False},
        reg,  # the built-in subject has a class
        own | {"prior.class_data_dir": str(tmp_path / "none yet")},
    ):
        made = overlay.load(named)
        name_class(made)
        assert made.prior.class_prompt is None
