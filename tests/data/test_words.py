"""Words reach the picture they were written for, and those that reach none are named."""

import json
import unicodedata

import pytest
from photos import folder_of, noise_picture

from trainer.data.words import Table, Words, elsewhere, text_of
from trainer.errors import ConfigError


def said(folder, *names):
    """[(caption, where)] of the pictures `names`, and the problems."""
    words = Words(folder, [folder / name for name in names], Table.all(folder))
    found = [words.of(folder / name) for name in names]
    return found, [*words.problems(), *(problem for table in words.tables for problem in table.problems())]


@pytest.mark.parametrize(
    "picture, beside",
    [
        ("IMG_1.PNG", "img_1.txt"),
        ("b.png", "b.TXT"),
        ("c.png", "c.png.txt"),
        ("d.png", "D.PNG.Caption"),
        ("IMG_2.jpg", "IMG_2.HEIC.txt"),  # the phone's own file was captioned, then converted
        ("é.png", unicodedata.normalize("NFD", "é") + ".txt"),
        ("a.b.png", "a.b.txt"),
        ("STRASSE.png", "straße.txt"),
    ],
)
def test_a_caption_finds_its_picture_although_the_names_differ_by_a_hair(tmp_path, picture, beside):
    (tmp_path / beside).write_text("hta dog")
    assert said(tmp_path, picture) == ([("hta dog", beside)], [])


def test_the_exact_name_counts_before_the_near_one_and_the_other_is_named(tmp_path):
    for name in ("a.txt", "A.txt", "a.png.txt", "a.caption"):
        (tmp_path / name).write_text(name)
    (found,), problems = said(tmp_path, "a.png")
    assert found == ("a.txt", "a.txt")
    assert problems == ["a.png has captions in a.txt, a.caption, a.png.txt, A.txt: a.txt counts"]


def test_one_caption_serves_a_picture_in_two_formats(tmp_path):
    (tmp_path / "a.txt").write_text("hta dog")
    assert said(tmp_path, "a.jpg", "a.png") == ([("hta dog", "a.txt")] * 2, [])


def test_texts_that_belong_to_no_picture_and_empty_ones_are_named(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "IMG_0001.txt").write_text("hta dog")
    (tmp_path / "notes.caption").write_text("x")
    found, problems = said(tmp_path, "a.png")
    assert found == [("", "")]
    assert "IMG_0001.txt, notes.caption belong to no picture" in problems[0] and "a.txt is empty" in problems[1]


@pytest.mark.parametrize(
    "row, picture",
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        (".\\a.png", "a.png"),
        ("A.PNG", "a.png"),
        ("a.jpg", "a.png"),
        ("a", "a.png"),
        ("photos/a.png", "a.png"),
        ("D:\\Pictures\\A.jpg", "a.png"),
        ("/srv/shared/photos/a.png", "a.png"),
        (unicodedata.normalize("NFD", "ü.png"), "ü.png"),
    ],
)
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_row_finds_its_picture_by_any_spelling(tmp_path, row, picture, table):
    text = (
        json.dumps({"file_name": row, "text": "hta dog"}) if table.endswith("l") else f"file_name,text\n{row},hta dog\n"
    )
    (tmp_path / table).write_text(text, encoding="utf-8")
    assert said(tmp_path, picture) == ([("hta dog", table)], [])


def test_a_table_above_numbered_folders_names_pictures_in_them(tmp_path):
    folder_of(tmp_path / "10_hta dog", 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "10_hta dog/00.png", "text": "hta dog asleep"}')
    picture = tmp_path / "10_hta dog" / "00.png"
    words = Words(picture.parent, [picture], Table.all(tmp_path))
    assert words.of(picture) == ("hta dog asleep", "metadata.jsonl")


def test_what_is_written_of_the_whole_folder_is_no_stray_caption(tmp_path):
    for name in ("README.txt", "licence.txt", "notes.txt"):
        (tmp_path / name).write_text("hta dog")
    _, problems = said(tmp_path, "a.png")
    assert problems == [f"notes.txt belongs to no picture in {tmp_path.name}: captions are called like their picture"]


def test_a_row_with_folders_in_front_stays_with_the_picture_that_it_names(tmp_path):
    folder_of(tmp_path / "sub", 1)
    rows = ("sub/00.png", "hta dog"), ("x/01.png", "one"), ("y/01.png", "two")
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": t}) for n, t in rows))
    found, problems = said(tmp_path, "00.png", "01.png")
    assert found == [("", ""), ("", "")], "the first is another picture's, and which 01.png is meant nobody knows"
    assert problems == ["metadata.jsonl: 3 rows name no picture here: sub/00.png, x/01.png, y/01.png"]


def test_captions_in_files_that_are_not_read_are_told_from_what_phones_export(tmp_path):
    for name, content in (
        ("IMG_1.json", {"caption": "hta dog"}),
        ("meta_cap.json", {"/srv/shared/img/IMG_1": {"caption": "hta dog"}}),
        ("manifest.json", {"settings": {"prompt": "a photo of a dog"}, "images": {}}),
        ("settings.json", {"prompt": "hta dog"}),
        ("rows.json", [{"file_name": "IMG_1.jpg", "text": "hta dog"}]),
        ("IMG_1.jpg.json", {"title": "IMG_1.jpg", "description": "", "geoData": {"latitude": 0.0}}),
        ("workflow.json", {"prompt": {"3": {}}}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "Captions.CSV").write_text("file_name,text\n")
    (tmp_path / "._captions.csv").write_text("")
    assert elsewhere(tmp_path.iterdir(), [tmp_path / "img_1.JPG"]) == [
        "Captions.CSV",
        "IMG_1.json",
        "meta_cap.json",
        "rows.json",
    ]


@pytest.mark.parametrize("row", [{}, {"captions": "hta dog"}, {"text": None}, {"text": " "}])
def test_rows_without_words_that_are_read_are_named(tmp_path, row):
    folder_of(tmp_path, 2)
    lines = [json.dumps({"file_name": "00.png"} | row), json.dumps({"file_name": "01.png", "prompt": "hta dog"})]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found, problems = said(tmp_path, "00.png", "01.png")
    assert found == [("", ""), ("hta dog", "metadata.jsonl")]
    assert problems == [
        "metadata.jsonl: 1 row has no words for the picture (00.png); text, caption, prompt are read",
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["катя", "γάτα", "חתול", "قطة"])
def test_a_word_of_another_alphabet_in_utf_16_without_a_mark_is_read(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert text_of(tmp_path / "a.txt") == text


def test_rows_that_say_two_things_of_one_picture_are_named(tmp_path):
    folder_of(tmp_path, 2)
    rows = [("00.png", "hta dog"), ("./00.PNG", "hta cat"), ("01.png", "hta dog"), ("01.png", " hta  dog")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert said(tmp_path, "00.png", "01.png") == (
        [("hta cat", "metadata.jsonl"), ("hta dog", "metadata.jsonl")],
        ["metadata.jsonl has several rows for ./00.PNG that differ: the last counts"],
    )


def test_rows_without_a_picture_are_named_and_a_caption_file_counts_before_a_row(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "x"}\n{"file_name": "gone.png", "text": "y"}\n'
    )
    (tmp_path / "a.txt").write_text("hta dog")
    assert said(tmp_path, "a.png") == (
        [("hta dog", "a.txt")],
        ["metadata.jsonl: 1 row names no picture here: gone.png"],
    )


@pytest.mark.parametrize("column", ["text", "caption", "Text", " prompt"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet_is_read_whatever_stands_between_its_columns(tmp_path, column, between):
    rows = [["file_name", column], ["a.png", f'"hta dog{between} asleep"']]
    (tmp_path / "metadata.csv").write_text("\r\n".join(map(between.join, rows)), encoding="utf-8-sig")
    (found,), _ = said(tmp_path, "a.png")
    assert found[0].startswith("hta dog") and found[0].endswith("asleep")


@pytest.mark.parametrize(
    "name, text, why",
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": ["a", "b"]}',
            "line 1 has a file_name or text that is no text",
        ),
        ("metadata.jsonl", '{"file_name": 7, "text": "a"}', "line 1 has a file_name"),
        ("metadata.jsonl", "\n[1]", "line 2 is not a JSON object"),
        ("metadata.csv", "picture,words\na.png,x\n", "names no columns file_name and text"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2 has too few columns"),
        ("metadata.csv", "", "names no columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        said(tmp_path, "a.png")
    assert why in error.value.what


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a photo of hta dog", "фото hta собаки"])
def test_text_of_every_common_make_is_read(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_text(text, encoding=encoding)
    assert text_of(tmp_path / "a.txt") == text


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
def test_text_in_an_old_code_page_is_refused_with_the_way_out(tmp_path, name):
    noise_picture((20, 20)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes("file_name,text\na.png,ein schöner Hund\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        said(tmp_path, "a.png")


def test_a_line_separator_inside_a_caption_ends_no_row(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "text": "hta\u2028dog"}, ensure_ascii=False), encoding="utf-8"
    )
    assert said(tmp_path, "a.png")[0] == [("hta dog", "metadata.jsonl")]
