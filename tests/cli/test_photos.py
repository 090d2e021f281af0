"""`photos DIR` says and shows what a run would make of a folder."""

import shlex

import numpy as np
import pytest
from photos import folder_of, noise_picture
from PIL import Image

from trainer.__main__ import main
from trainer.cli.photos import TAKEN


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_account_is_printed_picture_by_picture_and_drawn(here, capsys):
    folder_of(here / "dog", 2, (400, 300))
    (here / "dog" / "00.txt").write_text("hta dog asleep")
    (here / "dog" / "x.txt").write_text("hta dog")
    (here / "dog" / "broken.png").write_bytes(b"no picture")
    assert main(["photos", "dog", "--class_name", "a dog", "--resolution", "256"]) == 0
    said = capsys.readouterr().out
    for words in (
        "2 photos",
        "dog: 2 of 3 taken, 1 left out (not a picture",
        "00.png   400 x 300  256 x 256  75%    1 x    'hta dog asleep' (00.txt)",
        "'a photo of hta dog' (identifier and class_name)",
        "broken.png  left out: not a picture",
        "x.txt belongs to no picture",
        "'a dog' is taken as 'dog'",
        "sheet: runs/photos-dog.png",
    ):
        assert words in said, said
    with Image.open(here / "runs" / "photos-dog.png") as sheet:
        framed = (np.abs(np.asarray(sheet.convert("RGB")).astype(int) - TAKEN).max(axis=-1) <= 8).sum()
    assert framed > 2 * 4 * 100, "both crops are framed"


def test_the_sheet_never_lands_among_the_photos(here, monkeypatch):
    folder_of(here / "dog", 2)
    monkeypatch.chdir(here / "dog")
    for output in ("runs", ".", "runs/deep"):
        assert main(["photos", ".", "--class_name", "dog", "--resolution", "64", "--output_dir", output]) == 0
    assert sorted(path.name for path in (here / "dog").iterdir()) == ["00.png", "01.png"]
    assert (here / "photos-dog.png").is_file()


@pytest.mark.parametrize(
    ("classes", "how"), [("dog", "are in one place"), ("dog/class", "lie inside one another"), (".", "lie inside")]
)
@pytest.mark.parametrize("command", [["photos", "dog"], ["plan", "--instance_data_dir", "dog"]])
def test_looking_and_planning_refuse_class_images_among_the_photos_as_a_run_does(here, capsys, command, classes, how):
    folder_of(here / "dog", 2)
    (here / "dog" / "class").mkdir()
    line = ["--class_name", "dog", "--class_data_dir", classes]
    assert main([*command, *line]) == 2
    refused = capsys.readouterr().err
    assert f"the class images ({classes}) {how}" in refused and "name another folder with --class_data_dir" in refused
    assert main(["--instance_data_dir", "dog", *line, "--output_dir", "run"]) == 2
    assert capsys.readouterr().err == refused
    assert not (here / "runs").exists(), "no sheet of what is refused"


def test_a_photo_that_is_a_class_image_too_is_named_before_any_run(here, capsys):
    folder_of(here / "dog", 2)
    folder_of(here / "class" / "1_dog", 1)
    line = ["photos", "dog", "--class_name", "dog", "--resolution", "64", "--class_data_dir"]
    assert main([*line, "class"]) == 0
    said = [text for text in capsys.readouterr().out.splitlines() if "among the class images" in text]
    assert len(said) == 1 and said[0].startswith("warning: 00.png is 00.png among the class images")
    assert main([*line, "not made yet"]) == 0
    assert "among the class images" not in capsys.readouterr().out


def test_class_images_are_compared_with_the_photos_though_no_class_is_named_yet(here, capsys):
    folder_of(here / "dog", 2)
    assert main(["photos", "dog", "--class_data_dir", "dog"]) == 2
    assert "are in one place" in capsys.readouterr().err


def test_pictures_of_one_name_in_two_folders_are_shown_beside_a_numbered_one(here, capsys):
    for index, name in enumerate(("3_hta dog", "2_hta dog asleep")):
        (here / "img" / name).mkdir(parents=True)
        noise_picture((96, 80), index).save(here / "img" / name / "a.png")
    assert main(["photos", "img", "--resolution", "64"]) == 0
    said = capsys.readouterr().out
    assert "3_hta dog: 1 of 1 taken, each 3 times an epoch" in said and "3_hta dog/a.png" in said
    assert "'hta dog asleep' (the folder 2_hta dog asleep)" in said


@pytest.mark.parametrize(
    "line, words",
    [
        ("photos", "looks at one folder"),
        ("photos a b", "one folder"),
        ("photos a --lr 1", "no effect"),
        ("doctor --photos 'my dog'", "python -m trainer photos 'my dog'"),
    ],
)
def test_a_line_that_says_too_little_or_too_much_is_answered(here, capsys, line, words):
    assert main(shlex.split(line)) == 2
    assert words in capsys.readouterr().err
