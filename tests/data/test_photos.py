"""A folder of photos is understood, or refused with one clear message, before anything is loaded."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from photos import SUBJECTS, folder_of, noise_picture, scan, settings
from PIL import Image, TiffImagePlugin

from trainer.data import looks, pictures
from trainer.data import photos as data
from trainer.errors import ConfigError
from trainer.settings.config import Config, Data


def test_the_summary_says_what_was_understood(tmp_path):
    folder_of(tmp_path, 3, (96, 80))
    noise_picture((70, 90), 7).save(tmp_path / "tall.png")
    assert scan(tmp_path).summary == "4 photos, 1 portrait, smallest 70 px; prompt 'a photo of hta dog' for all"


def test_junk_is_ignored_and_counted(tmp_path):
    folder_of(tmp_path, 2)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "clip.mp4", "00.txt", ".hidden.png", "IMG_1.AAE"):
        (tmp_path / name).write_text("a photo of sks dog")
    found = scan(tmp_path)
    assert len(found.photos) == 2 and found.ignored == 6 and not found.problems, "00.txt is a caption, no junk"
    assert "6 other files ignored" in found.summary
    assert scan(tmp_path, captions=False).ignored == 7


def test_bad_pictures_are_named_and_left_out(tmp_path):
    folder_of(tmp_path, 2)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "short.png").write_bytes((tmp_path / "00.png").read_bytes()[:200])
    (tmp_path / "twin.png").write_bytes((tmp_path / "01.png").read_bytes())
    noise_picture((15, 15), 5).save(tmp_path / "tiny.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    noise_picture((50, 60), 6).save(tmp_path / "small.png")
    found = scan(tmp_path)
    assert [photo.name for photo in found.photos] == ["00.png", "01.png", "small.png"]
    said = "\n".join(found.problems)
    for words in (
        "empty.jpg is left out: the file is empty",
        "short.png is left out",
        "gone.jpg is left out: No such file",
        "twin.png is left out: the same picture as 01.png",
        "tiny.png is left out: 15 x 15 px is too small",
        "small.png is 50 x 60 px and will be enlarged",
    ):
        assert words in said
    assert len(found.problems) == 6


def test_captions_come_from_text_files_and_metadata(tmp_path):
    folder_of(tmp_path, 3)
    (tmp_path / "00.txt").write_text("\ufeffsks dog on\na sofa \n", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "01.png", "text": "sks dog in snow"}) + "\n")
    assert [photo.prompt for photo in scan(tmp_path).photos] == [
        "sks dog on a sofa",
        "sks dog in snow",
        "a photo of hta dog",
    ]
    assert scan(tmp_path).summary.endswith("3 prompts, one a photo, such as 'sks dog on a sofa'")
    assert scan(tmp_path, captions=False).prompts == ["a photo of hta dog"]


def test_an_empty_caption_falls_back_to_the_prompt(tmp_path):
    folder_of(tmp_path, 1)
    (tmp_path / "00.txt").write_text("  \n")
    assert scan(tmp_path).prompts == ["a photo of hta dog"]


@pytest.mark.parametrize("content", ["{not json", '{"text": "no name"}', "[1, 2]"])
def test_broken_metadata_is_refused_with_its_line(tmp_path, content):
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x"}\n' + content)
    with pytest.raises(ConfigError, match="line 2"):
        scan(tmp_path)


def test_a_caption_that_is_not_text_is_refused(tmp_path):
    folder_of(tmp_path, 1)
    (tmp_path / "00.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="UTF-8"):
        scan(tmp_path)


def test_kohya_folders_give_repeats_and_captions(tmp_path):
    folder_of(tmp_path / "10_sks dog", 2)
    folder_of(tmp_path / "3_sks dog outside", 3, (80, 96))
    found = scan(tmp_path)
    assert [(photo.repeats, photo.prompt) for photo in found.photos] == [(10, "sks dog")] * 2 + [
        (3, "sks dog outside")
    ] * 3
    assert [photo.repeats for photo in scan(tmp_path / "10_sks dog").photos] == [10, 10]


def test_pictures_in_plain_folders_beside_numbered_ones_are_said_to_be_left(tmp_path):
    folder_of(tmp_path / "3_hta dog", 2)
    folder_of(tmp_path / "2023_holiday", 3)
    photos = scan(tmp_path)
    left = "3 pictures in 2023_holiday left out: its name gives no repeats (--folders all takes them)"
    assert len(photos.photos) == 2 and left in photos.problems
    assert left not in scan(tmp_path, folders="numbered").problems and len(scan(tmp_path, folders="all").photos) == 5


def test_masks_come_from_a_file_or_from_alpha(tmp_path):
    folder_of(tmp_path, 3, (96, 80))
    Image.new("L", (96, 80), 128).save(tmp_path / "00.mask.png")
    Image.new("L", (10, 10), 128).save(tmp_path / "01.mask.png")
    cut_out = noise_picture((96, 80), 9).convert("RGBA")
    cut_out.putalpha(Image.radial_gradient("L").resize((96, 80)))
    cut_out.save(tmp_path / "03.png")
    found = scan(tmp_path, masked_loss=True)
    assert [Path(photo.mask).name for photo in found.photos] == ["00.mask.png", "", "", "alpha"]
    assert found.problems == ("01.mask.png is not used: its size differs from 01.png's",)
    assert "2 with a mask" in found.summary
    assert [photo.mask for photo in scan(tmp_path).photos] == [""] * 4


def test_masked_loss_without_any_mask_is_refused(tmp_path):
    folder_of(tmp_path)
    with pytest.raises(ConfigError, match=r"name\.mask\.png"):
        scan(tmp_path, masked_loss=True)


def test_a_black_mask_is_named_and_not_used(tmp_path):
    folder_of(tmp_path, 2)
    Image.new("L", (96, 80), 0).save(tmp_path / "00.mask.png")
    Image.new("L", (96, 80), 9).save(tmp_path / "01.mask.png")
    found = scan(tmp_path, masked_loss=True)
    assert [bool(photo.mask) for photo in found.photos] == [False, True] and "black everywhere" in found.problems[0]


def test_a_long_picture_is_named_unless_it_gets_a_bucket(tmp_path):
    noise_picture((400, 100)).save(tmp_path / "wide.png")
    assert any("the square crop keeps 25% of it" in problem for problem in scan(tmp_path).problems)
    noise_picture((200, 100)).save(tmp_path / "wide.png")
    assert not scan(tmp_path, buckets=True, divides=8).problems


def test_a_bucket_that_loses_more_than_a_fifth_says_so_and_buckets_are_not_advised_where_they_do_not_help(tmp_path):
    noise_picture((800, 100)).save(tmp_path / "wide.png")
    (square,) = [text for text in scan(tmp_path).problems if "square crop" in text]
    assert "crop it by hand" in square and "--buckets" not in square
    (bucket,) = [text for text in scan(tmp_path, buckets=True, divides=8).problems if "crop of" in text]
    assert "keeps 21% of it" in bucket and "--buckets" not in bucket


def test_missing_folders_and_empty_ones_name_the_way_out(tmp_path):
    folder_of(tmp_path / "photos" / "dog", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").touch()
    for folder, words in (
        ("photo", "did you mean"),
        ("photos", "photos/dog"),
        ("empty", "put 3 to 6 photos"),
        ("broken", "the file is empty"),
        ("photos/dog/00.png", "name its folder"),
    ):
        with pytest.raises(ConfigError) as error:
            scan(tmp_path / folder)
        assert words in str(error.value)


def test_prompts_are_built_from_identifier_and_class():
    assert data.instance_prompt(Data(identifier="hta", class_name="cat")) == "a photo of hta cat"
    assert data.instance_prompt(Data(identifier="hta")) == "a photo of hta"
    assert data.instance_prompt(Data(instance_prompt="hta, oil on canvas", class_name="cat")) == "hta, oil on canvas"
    config = settings(Path("x"))
    assert data.class_prompt(config) == "a photo of a dog"
    config.data.class_name = "apple"
    assert data.class_prompt(config) == "a photo of an apple"
    with pytest.raises(ConfigError, match="--class_name"):
        data.class_prompt(Config())


@pytest.mark.skipif(not SUBJECTS.is_dir(), reason="the subject photos are not beside this checkout")
@pytest.mark.parametrize("name", ["dog", "cat", "backpack_dog", "bear_plushie", "rc_car", "teapot"])
def test_real_photos_are_all_understood(name):
    found = scan(SUBJECTS / name, 512)
    assert (
        len(found.photos) == 5 and found.ignored == 0 and not any("left out" in problem for problem in found.problems)
    )


def test_photos_need_a_name_a_prompt_or_words_beside_every_one(tmp_path):
    folder_of(tmp_path, 2)
    with pytest.raises(ConfigError, match="what do the photos show"):
        scan(tmp_path, class_name=None)
    (tmp_path / "00.caption").write_text("hta dog")
    with pytest.raises(ConfigError, match=r"1 of 2 photos have captions; what do 01\.png show"):
        scan(tmp_path, class_name=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "hta dog"}')
    with pytest.raises(ConfigError, match=r"1 row names no picture here: 1\.png"):
        scan(tmp_path, class_name=None)
    (tmp_path / "metadata.jsonl").unlink()
    assert scan(tmp_path, class_name=None, instance_prompt="my hta").prompts == ["hta dog", "my hta"]
    (tmp_path / "metadata.csv").write_text("file_name,text\n01.png,hta dog in snow\n")
    assert scan(tmp_path, class_name=None).prompts == ["hta dog", "hta dog in snow"]


def test_a_mask_outside_the_crop_leaves_its_photo_out_and_a_bucket_brings_it_back(tmp_path):
    for name, box in (("00", (0, 0, 30, 80)), ("01", (60, 0, 120, 80))):
        noise_picture((160, 80), int(name)).save(tmp_path / f"{name}.png")
        mask = Image.new("L", (160, 80), 0)
        mask.paste(255, box)
        mask.save(tmp_path / f"{name}.Mask.PNG")
    found = scan(tmp_path, masked_loss=True)
    assert [photo.name for photo in found.photos] == ["01.png"]
    assert "00.png is left out: its mask lies outside the crop" in found.problems[0]
    assert len(scan(tmp_path, masked_loss=True, buckets=True, divides=8).photos) == 2
    assert len(scan(tmp_path, masked_loss=True, crop="random", crop_variants=32).photos) == 2, "some crop shows it"
    (tmp_path / "01.Mask.PNG").unlink()
    with pytest.raises(
        ConfigError, match=r"no photo that is left has .*\n  00\.png is left out: its mask lies outside"
    ):
        scan(tmp_path, masked_loss=True)


def test_many_pictures_with_one_fault_are_one_sentence_and_the_account_has_each(tmp_path):
    folder_of(tmp_path, 2)
    for index in range(6):
        (tmp_path / f"cut{index}.png").write_bytes((tmp_path / "00.png").read_bytes()[: 900 + index])
        (tmp_path / f"twin{index}.png").write_bytes((tmp_path / "01.png").read_bytes())
    found = scan(tmp_path)
    assert len(found.left) == 12 and found.problems == (
        "6 pictures are left out: damaged or cut short (cut0.png, cut1.png, cut2.png, cut3.png, cut4.png and 1 more)",
        "6 pictures are left out: the same picture as another (twin0.png, twin1.png, twin2.png, twin3.png, twin4.png and "
        "1 more)",
    )
    (line,) = [line for line in found.lines() if " taken, " in line]
    assert "6 left out (damaged or cut short), 6 left out (the same picture as another)" in line
    assert not any("crop_jitter" in text for text in found.advice), "what is left out comes first"


def test_where_most_photos_wait_for_a_package_no_run_begins_on_the_rest(tmp_path, monkeypatch):
    def missing():
        raise pictures.Unreadable("HEIC needs one more package: pip install pillow-heif (or convert it to JPEG)")

    monkeypatch.setattr(pictures, "_allow_heif", missing)
    folder_of(tmp_path, 2)
    for name in ("00.HEIC", "01.heic", "a.heic", "b.heic"):
        (tmp_path / name).touch()
    assert len(scan(tmp_path).photos) == 2, "two lie beside their own JPEG, and two of four are no majority"
    (tmp_path / "c.HEIC").touch()
    with pytest.raises(ConfigError, match=r"3 of 5 pictures in .* are HEIC") as error:
        scan(tmp_path)
    assert "pip install pillow-heif" in error.value.fix
    (tmp_path / "phone").mkdir()
    (tmp_path / "c.HEIC").rename(tmp_path / "phone" / "c.HEIC")
    with pytest.raises(ConfigError, match="1 of 1 pictures in"):
        scan(tmp_path / "phone")


def test_masks_that_are_not_asked_for_are_named(tmp_path):
    folder_of(tmp_path, 2)
    Image.new("L", (96, 80), 128).save(tmp_path / "00-masklabel.png")
    assert (
        "00-masklabel.png taken for masks and not used: --masked_loss weighs the loss by them" in scan(tmp_path).advice
    )
    assert [Path(photo.mask).name for photo in scan(tmp_path, masked_loss=True).photos] == ["00-masklabel.png", ""]


def test_captions_that_are_not_asked_for_are_counted(tmp_path):
    folder_of(tmp_path, 3)
    for name in ("00.txt", "01.caption", "notes.md"):
        (tmp_path / name).write_text("hta dog asleep")
    off = scan(tmp_path, captions=False)
    assert "2 text files beside the photos not read: captions are off" in off.advice
    assert {photo.prompt for photo in off.photos} == {"a photo of hta dog"}
    assert not any("captions are off" in text for text in scan(tmp_path).advice)


def test_a_scan_of_several_pages_says_that_the_first_is_used(tmp_path):
    pages = [noise_picture((96, 80), index) for index in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    preview = TiffImagePlugin.ImageFileDirectory_v2()
    preview[254] = 1
    small = pages[0].resize((48, 40))
    small.encoderinfo = {"tiffinfo": preview}
    pages[1].save(tmp_path / "b.tif", save_all=True, append_images=[small])
    found = scan(tmp_path)
    assert [photo.size for photo in found.photos] == [(96, 80), (96, 80)]
    assert found.problems == ("a.tif has 3 pages: the first is used; save the others as files",)


def test_what_nobody_looks_at_is_in_the_account_and_said_once(tmp_path):
    folder_of(tmp_path, 2)
    folder_of(tmp_path / "2023" / "07", 3)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nef").touch()
    (tmp_path / "captions.csv").write_text("file_name,text\n")
    found = scan(tmp_path)
    assert [left.why for left in found.left] == ["too far down"] * 3
    assert found.problems == (
        "3 pictures further down left out (2023/07): name their folder, or move them up",
        "not read: 1 camera raw .nef in raw; save them as JPEG or PNG to train on them",
        "captions in captions.csv are not read: put them into name.txt, metadata.jsonl or metadata.csv",
    )
    assert scan(tmp_path, folders="loose", captions=False).problems == (), "whoever says loose knows the rest"


def test_buckets_that_change_nothing_are_said_to(tmp_path):
    folder_of(tmp_path, 5, (128, 80))
    assert any("--buckets changes nothing here" in text for text in scan(tmp_path, buckets=True).advice)
    assert not any("changes nothing" in text for text in scan(tmp_path, buckets=True, divides=8).advice)


def test_several_folders_have_their_own_repeats_and_prompts(tmp_path):
    for number, name in enumerate(("one", "two words", "3_hta cat")):
        folder_of(tmp_path / name, 1 + number)
    one, two, three = (tmp_path / name for name in ("one", "two words", "3_hta cat"))
    entries = [f"10 x {one} = a photo of hta dog", str(two), str(three), f"1 x {three}"]
    found = scan(one, subsets=entries, class_name="dog")
    told = [(photo.repeats, photo.prompt) for photo in found.photos]
    assert told[:3] == [(10, "a photo of hta dog"), *[(1, "a photo of hta dog")] * 2]
    assert told[3:] == [*[(3, "hta cat")] * 3, *[(1, "hta cat")] * 3], "a number that is said counts before the name's"
    assert any(line.startswith(f"{two}: 2 of 2") for line in found.lines())


def test_a_class_image_of_ours_among_the_photos_is_left_out(tmp_path):
    folder_of(tmp_path, 3)
    data = (tmp_path / "02.png").read_bytes()
    (tmp_path / "02.png").rename(tmp_path / f"00002-{hashlib.sha256(data).hexdigest()[:12]}.png")
    (tmp_path / "00001-0123456789ab.png").write_bytes((tmp_path / "01.png").read_bytes() + b"mine")  # no checksum of it
    found = scan(tmp_path)
    assert [photo.name for photo in found.photos] == ["00.png", "00001-0123456789ab.png"]
    assert any("class image that this program drew" in left.why for left in found.left)


@pytest.mark.skipif(not looks.can_compare(), reason="imagehash is not installed")
def test_a_picture_whose_name_does_not_say_so_is_named(tmp_path):
    folder_of(tmp_path, 1)
    for name, kind in {"photo": "PNG", "a.jpg_large": "JPEG", "b.jpg?w=640": "WEBP", ".thumb": "PNG"}.items():
        noise_picture((96, 80), len(name)).save(tmp_path / name, kind)
    for name, content in {
        "c.nef": b"\xff\xd8\xff" + b"\0" * 99,
        "d.bin": b"RIFF\0\0\0\0WAVE",
        "e.mp4": b"\0\0\0 ftypisom",
    }.items():
        (tmp_path / name).write_bytes(content)
    (said,) = [text for text in scan(tmp_path).problems if "say so" in text]
    assert said.startswith("a.jpg_large, b.jpg?w=640, photo hold pictures, but their names do not say so: end the name")


def test_a_folder_without_photos_says_what_is_there_instead(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK\3\4")
    noise_picture((96, 80)).save(tmp_path / "one", "JPEG")
    with pytest.raises(ConfigError) as refused:
        scan(tmp_path)
    assert f"no photos in {tmp_path}, only one, photos.zip\n  one holds a picture, but its name" in refused.value.what


def test_a_mask_that_serves_no_picture_is_named(tmp_path):
    folder_of(tmp_path, 2)
    for name in ("00.mask.png", "01.mask.jpg", "elsewhere.mask.png"):
        Image.new("L", (96, 80), 255).save(tmp_path / name)
    said = [text for text in scan(tmp_path, masked_loss=True).problems if "mask" in text]
    assert said == [
        "01.mask.jpg, elsewhere.mask.png not used: a mask is a PNG beside its picture, a.mask.png beside a.jpg"
    ]


def test_pictures_in_both_halves_are_named(tmp_path):
    photos, classes = scan(folder_of(tmp_path / "photos", 3)), folder_of(tmp_path / "class", 1)
    noise_picture((48, 40), 1).save(tmp_path / "class" / "smaller.jpg", quality=80)
    noise_picture((96, 80), 9).save(tmp_path / "class" / "another.png")
    said = data.in_both(photos, data.scan_class(classes, settings(tmp_path), 64))
    assert len(said) == 2 and "00.png is 00.png" in said[0] and "01.png looks like smaller.jpg" in said[1]
    without_hashes = [
        replace(account, photos=tuple(replace(photo, bits=None) for photo in account.photos))
        for account in (photos, data.scan_class(classes, settings(tmp_path), 64))
    ]
    assert data.in_both(*without_hashes) == said[:1], "the same bytes need no package"


def test_what_is_wrong_with_many_photos_is_said_once(tmp_path):
    folder_of(tmp_path, 9, (50, 40))
    (one,) = [text for text in scan(tmp_path).problems if "enlarged" in text]
    assert one.startswith("9 of 9 photos are smaller") and one.endswith("03.png, 04.png and 4 more")
    for index in range(3, 9):
        (tmp_path / f"{index:02d}.png").unlink()
    said = [text for text in scan(tmp_path).problems if "enlarged" in text]
    assert len(said) == 3 and said[0].startswith("00.png is 50 x 40 px")


def test_a_prompt_that_stands_beside_many_photos_is_one_line_of_the_account(tmp_path):
    folder_of(tmp_path, 5)
    for index in range(4):
        (tmp_path / f"{index:02d}.txt").write_text("hta dog, grass")
    lines = list(scan(tmp_path).lines())
    assert lines == [
        "4 x 'hta dog, grass' (00.txt, 01.txt, 02.txt and 1 more)",
        "1 x 'a photo of hta dog' (identifier and class_name)",
    ]


def test_photos_two_folders_down_are_pointed_at(tmp_path):
    folder_of(tmp_path / "kohya" / "img" / "20_hta dog", 3)
    with pytest.raises(ConfigError) as error:
        scan(tmp_path / "kohya")
    assert "3 pictures further down" in error.value.what
    assert error.value.fix == f"use --instance_data_dir {tmp_path / 'kohya' / 'img'}"
    folder_of(tmp_path / "phone" / "DCIM" / "100APPLE", 2)
    with pytest.raises(ConfigError) as error:
        scan(tmp_path / "phone")
    assert error.value.fix == f"use --instance_data_dir {tmp_path / 'phone' / 'DCIM' / '100APPLE'}"
