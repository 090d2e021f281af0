"""Contact sheets: pictures side by side, each with its caption, the way photographers looked at a roll of film."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer.files.whole import whole

FONTS = (  # of machines, by the name of their file, which Pillow looks for where systems keep fonts
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "msgothic.ttc",
    "Hiragino Sans GB.ttc",
)
NO_LETTER = "\uffff"
GROUND, INK, ALARM, MARGIN = (250, 250, 248), (40, 40, 40), (176, 0, 32), 8


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    path: Path | str | None = None,
    *,
    columns: int | None = None,
    side: int | None = None,
    title: str = "",
    foot: Sequence[str] = (),
) -> Image.Image:
    """Pictures in rows, captions wrapped below; saved to `path` where one is given.

    captions: at most three lines, or three for each part where line breaks divide it; a part that begins with "! " alarms
    foot:     sentences below, across the whole sheet

    columns: default as square a sheet as possible, at most 6; side: longest side of a picture on the sheet, default
    their own, at least 128 px (small pictures are enlarged by whole factors) and at most 512.
    """
    assert pictures and len(pictures) == len(captions)
    columns = columns or min(6, math.ceil(math.sqrt(len(pictures))))
    side = side or min(512, max(128, max(max(picture.size) for picture in pictures)))
    letters = "".join([title, *captions, *foot])
    font, big = _font(13, letters), _font(17, letters)
    captions, foot = ([_drawable(text, font) for text in texts] for texts in (captions, foot))
    words = [
        [
            (line, ALARM if part.startswith("! ") else INK)
            for part in caption.split("\n")
            for line in _wrap(part, font, side)
        ]
        for caption in captions
    ]
    tops = [words[i : i + columns] for i in range(0, len(words), columns)]
    text_heights = [max(len(lines) for lines in row) * 17 + MARGIN for row in tops]
    width = columns * (side + MARGIN) + MARGIN
    heading = _wrap(_drawable(title, big), big, width - 2 * MARGIN) if title else []
    head = 8 + 22 * len(heading) if heading else 0
    below = [line for text in foot for line in _wrap(text, font, width - 2 * MARGIN)]
    height = head + MARGIN + sum(side + h for h in text_heights) + 17 * len(below) + (MARGIN if below else 0)
    sheet = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        pen.text((MARGIN, MARGIN + 22 * number), line, INK, big)
    y = head + MARGIN
    for row, text_height in enumerate(text_heights):
        for column in range(columns):
            index = row * columns + column
            if index >= len(pictures):
                break
            fitted, x = _fit(pictures[index].convert("RGB"), side), MARGIN + column * (side + MARGIN)
            sheet.paste(fitted, (x + (side - fitted.width) // 2, y + side - fitted.height))
            for number, (line, ink) in enumerate(words[index]):
                pen.text((x, y + side + 2 + 17 * number), line, ink, font)
        y += side + text_height
    for number, line in enumerate(below):
        pen.text((MARGIN, y + 17 * number), line, INK, font)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as part:
            sheet.save(part, "PNG")
    return sheet


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has no letter beyond ASCII, or the machine's font that has most of `text`'s."""
    found = [ImageFont.load_default(size)]
    if not text.isascii():
        found += [font for name in FONTS if (font := _machines(name, size)) is not None]
    letters = sorted(set(unicodedata.normalize("NFC", text)))
    return max(found, key=lambda font: sum(_draws(font, letter) for letter in letters))


def _machines(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _draws(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether `font` has a sign of its own for `letter`, not the box for all that it lacks."""
    return letter.isascii() or bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


def _drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """`text` in letters that `font` has: "Café" without its accent rather than with a box, and "?" for what is left."""
    if text.isascii():
        return text

    def nearest(letter: str) -> str:
        bare = unicodedata.normalize("NFKD", letter)[0]
        return next((each for each in (letter, bare) if _draws(font, each)), "?")

    return "".join(map(nearest, unicodedata.normalize("NFC", text)))


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Into a square of `side`: enlarged by a whole factor with hard pixels, or reduced smoothly."""
    factor = side // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scale = side / max(picture.size)
    return picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int = 3) -> list[str]:
    """Lines of at most `width` pixels, at most `limit` of them; what does not fit ends in an ellipsis."""
    lines, line = [], ""
    for word in (piece for each in text.split() for piece in _pieces(each, font, width)):
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
        else:
            lines, line = [*lines, line], word
    lines = [*lines, line] if line else lines or [""]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], lines[limit - 1] + " ..."]
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word, or what fits a line of it at a time: names of files have no blanks, and would run into their neighbour's."""
    if font.getlength(word) <= width or len(word) < 2:
        return [word]
    fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
    return [word[:fits], *_pieces(word[fits:], font, width)]
