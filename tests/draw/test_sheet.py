"""Words on contact sheets can be read, whatever they are written in."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from trainer.draw import sheet

PICTURE = Image.new("RGB", (200, 200), "grey")


def drawn(*captions: str) -> list[np.ndarray]:
    return [np.asarray(sheet.contact_sheet([PICTURE], [caption], title=caption)) for caption in captions]


@pytest.mark.parametrize("fonts", [sheet.FONTS, ()])
def test_no_letter_of_a_caption_is_a_box(monkeypatch, fonts):
    monkeypatch.setattr(sheet, "FONTS", fonts)
    accents, plain, box, other = drawn("Caf\u00e9", "Cafe", "Caf\uffff", "Caf\u00e8")
    assert not np.array_equal(accents, box)
    assert not np.array_equal(accents, other) or np.array_equal(accents, plain), "without a font, without its accent"
    composed, apart = drawn("\u00fcber", "u\u0308ber")
    assert np.array_equal(composed, apart), "both spellings are one word"


def test_what_no_font_has_is_a_question_mark_and_ascii_is_drawn_as_ever(monkeypatch):
    monkeypatch.setattr(sheet, "FONTS", ("NoSuchFont.ttf",))
    unknown, asked = drawn("\u5199 \U0001f408", "? ?")
    assert np.array_equal(unknown, asked)
    assert sheet._font(13, "plain words").getname() == ImageFont.load_default(13).getname()


def test_a_name_without_blanks_stays_below_its_own_picture():
    """Cameras' names, and prompts of tags without blanks, are wider than a picture."""
    long = "00100dPORTRAIT_00100_BURST20200101120000123_COVER" * 3
    font = sheet._font(13, long)
    lines = sheet._wrap(long, font, 200, limit=99)
    assert len(lines) > 3 and "".join(lines) == long and all(font.getlength(line) <= 200 for line in lines)
    assert sheet._wrap(f"a {long}", font, 200, limit=99)[0] == "a", "a word that fits no line begins on one of its own"
    one = sheet.contact_sheet([PICTURE], ["a"], title="short")
    assert sheet.contact_sheet([PICTURE], ["a"], title=long).height > one.height, "the title has lines, too"
