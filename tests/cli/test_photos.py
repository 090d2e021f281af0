"""`photos DIR` says and shows what a run would make of a folder."""

import json
import shlex

import numpy as np
import pytest
from photos import folder_of, noise_picture
from PIL import Image

from trainer.__main__ import main
from trainer.cli import photos as look
from trainer.cli.parse import parse
from trainer.cli.photos import TAKEN
from trainer.run.prepare import prepare


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


def test_below_each_picture_of_the_sheet_stand_its_crop_its_words_and_what_is_wrong(here, monkeypatch):
    told = {}
    drawn = look.contact_sheet
    monkeypatch.setattr(
        look,
        "contact_sheet",
        lambda tiles, captions, path, **rest: (
            told.update(rest, captions=captions) or drawn(tiles, captions, path, **rest)
        ),
    )
    folder = folder_of(here / "img" / "3_hta dog", 2, (320, 240))
    noise_picture((900, 240), 7).save(folder / "wide.png")
    (folder / "wide.txt").write_text("hta dog asleep")
    (folder / "twin.png").write_bytes((folder / "00.png").read_bytes())
    Image.new("L", (320, 240), 255).save(folder / "01.mask.png")
    (folder / "stray.txt").write_text("hta dog")
    assert main(["photos", "img", "--resolution", "240", "--masked_loss"]) == 0
    by_name = {caption.partition("\n")[0]: caption.split("\n")[1:] for caption in told["captions"]}
    assert by_name["3_hta dog/00.png"] == ["240 x 240, keeps 75%, 3 times an epoch", "'hta dog' (the folder 3_hta dog)"]
    assert by_name["3_hta dog/01.png"][0].endswith(", masked")
    crop, words, wrong = by_name["3_hta dog/wide.png"]
    assert crop.startswith("240 x 240, keeps 27%") and words == "'hta dog asleep' (wide.txt)"
    assert wrong.startswith("! is 900 x 240 px: the square crop keeps 27% of it")
    assert by_name["3_hta dog/twin.png"] == ["! left out: the same picture as 00.png"]
    assert any("stray.txt belongs to no picture" in line for line in told["foot"]) and "3 photos" in told["title"]


def test_every_frame_of_a_burst_says_so_on_the_sheet(here, monkeypatch):
    pytest.importorskip("imagehash")
    told, drawn = {}, look.contact_sheet
    monkeypatch.setattr(
        look, "contact_sheet", lambda *words, **rest: told.update(rest, captions=words[1]) or drawn(*words, **rest)
    )
    (here / "dog").mkdir()
    frame = noise_picture((330, 330), 3)
    for index in range(7):  # the light changes
        frame.point([min(255, 4 * index + level) for level in range(256)] * 3).save(here / "dog" / f"{index}.png")
    noise_picture((330, 330), 4).save(here / "dog" / "other.png")
    assert main(["photos", "dog", "--class_name", "dog", "--resolution", "256"]) == 0
    says = ["looks like" in caption and "and 4 more" in caption for caption in told["captions"]]
    assert says == [True] * 7 + [False] and not any("look alike" in line for line in told["foot"])


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


@pytest.mark.parametrize(
    ("reg", "more", "held"),
    [
        ("1_dog", ["--method", "full"], True),
        ("dog", ["--method", "full"], False),  # no number, no class
        ("1_dog", ["--method", "lora", "--with_prior_preservation"], True),
        ("1_dog", ["--method", "full", "--no-with_prior_preservation"], False),
    ],
)
def test_a_run_its_plan_and_a_look_take_the_same_class_from_the_folders_names(here, capsys, reg, more, held):
    folder_of(here / "img" / "3_sks dog", 2)
    folder_of(here / "reg" / reg, 2, (70, 64))
    line = ["--model", "demo", "--instance_data_dir", "img", "--class_data_dir", "reg", *more]
    (here / "file").touch()
    assert main([*line, "--output_dir", "file"]) == 2
    said = capsys.readouterr().err  # the folder is looked at last, after what would have no effect
    assert ("output_dir file is a file" in said) == held and ("prior preservation is off" in said) == (not held)
    assert main(["plan", *line, "--json"]) == 0
    planned = capsys.readouterr()
    assert ("class images" in {phase["name"] for phase in json.loads(planned.out.splitlines()[-1])["phases"]}) == held
    assert ("class_data_dir (flag --class_data_dir) has no effect" in planned.err) == (not held)
    assert main(["photos", "img", *line[:2], *line[4:]]) == 0
    looked = capsys.readouterr().out
    assert ("class images in reg: 2 photos" in looked) == held == ("2 x 'dog' (the folder 1_dog)" in looked)
    trained = prepare(parse(line).config()).config
    assert trained.prior.with_prior_preservation == held and (trained.prior.class_prompt == "dog") == held
    assert trained.data.identifier == "sks" and "2 x 'sks dog' (the folder 3_sks dog)" in looked


def test_a_look_measures_with_the_models_own_sides_and_says_which_photo_is_kept_back(here, capsys):
    folder_of(here / "dog", 8, (800, 600))
    line = ["--class_name", "dog"]
    assert main(["photos", "dog", *line, "--family", "sdxl"]) == 0
    said = capsys.readouterr().out
    assert "1024 x 1024" in said and "8 of 8 photos are smaller" in said
    assert main(["photos", "dog", *line, "--model", "demo", "--buckets"]) == 0
    said = capsys.readouterr().out
    run = prepare(parse(["--instance_data_dir", "dog", *line, "--model", "demo", "--buckets"]).config())
    width, height = run.photos.photos[0].size_cut
    assert f"{width} x {height}" in said and width <= 128
    assert f"note: {run.spared.name} is kept back to measure overfitting" in said
    assert main(["photos", "dog", *line, "--no-watch"]) == 0
    assert "kept back" not in capsys.readouterr().out


def test_what_is_wrong_with_class_images_is_said_before_any_run(here, capsys):
    folder_of(here / "dog", 2)
    folder_of(here / "reg" / "1_dog", 3, (70, 64))
    Image.new("RGB", (64, 64)).save(here / "reg" / "1_dog" / "black.png")
    (here / "reg" / "1_dog" / "again.png").write_bytes((here / "reg" / "1_dog" / "00.png").read_bytes())
    line = ["photos", "dog", "--class_name", "dog", "--class_data_dir", "reg", "--resolution", "64"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "1_dog: 3 of 5 taken" in said and "1 class image left out: it is one colour everywhere (black.png)" in said
    assert "1 class image left out: the same picture as another (again.png)" in said
