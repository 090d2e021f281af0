"""`python -m trainer photos DIR`: what a run would make of a folder, before any run.

It prints the account (`data/account.py`) picture by picture, and draws it: a contact sheet with what each crop takes and
loses, the bucket, the prompt and where it comes from, and what is wrong. Nothing is loaded and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.data import looks, pictures, prompts
from trainer.data import photos as data
from trainer.data.account import Photo, PhotoSet, by_kind, counted, of_left, within
from trainer.data.folders import listed
from trainer.draw.sheet import contact_sheet
from trainer.files.shown import shown as fit
from trainer.guard import held
from trainer.plan.command import facts_for
from trainer.settings.config import Config
from trainer.settings.effect import prior_is_on

SIDE = 300  # pixels of a picture on the sheet
MOST = 120  # pictures on the sheet
TAKEN, GONE = (255, 196, 0), (200, 40, 40)


def main(config: Config) -> int:
    """Print the account and draw it. Raises ConfigError as a run would."""
    facts = facts_for(config)
    side = config.data.resolution or facts.family.resolution
    said = list(data.mend(config))
    photos = data.scan(config, side, facts.divides)
    said += prompts.check(config, photos, prior_is_on(config), windows=facts.family.trains_text)
    classes = _classes(config, side)
    said += [*data.in_both(photos, classes), *_left(classes)]
    print(fit(photos.summary, lines=True))
    for line in photos.lines():
        print(f"  {fit(line)}")
    if classes.photos:
        print(fit(f"class images in {classes.folder}: {classes.summary}", lines=True))
        for line in classes.lines():
            print(f"  {fit(line)}")
    print()
    for row in _rows(photos):
        print(fit(row))
    for text in (*said, *photos.problems, *classes.problems):
        if not of_left(text):  # its picture said so above
            print(f"warning: {fit(text)}")
    _, spared = held.hold_out(photos) if config.guard.watch else (photos, None)
    for text in (*photos.advice, *([held.said(spared)] if spared else [])):
        print(f"note: {fit(text)}")
    sheet = _place(config, Path(photos.folder))
    _draw(photos, [*said, *photos.problems], sheet)
    print(f"\nsheet: {fit(str(sheet))}")
    return 0


def _classes(config: Config, side: int) -> PhotoSet:
    """The account of the class's pictures that are there already; the model draws others when a run begins."""
    folder = Path(config.prior.class_data_dir or "")
    there = prior_is_on(config) and config.prior.class_data_dir and folder.is_dir()
    return data.scan_class(folder, config, side) if there else PhotoSet(())


def _left(classes: PhotoSet) -> list[str]:
    """Class images that are not used, those of one reason together."""
    return [
        f"{counted(len(lefts), 'class image')} left out: {reason} ({listed([left.name for left in lefts])})"
        for reason, lefts in by_kind(classes.left).items()
    ]


def _rows(photos: PhotoSet) -> list[str]:
    """A line for each picture: taken ones with their crop, share, repeats and words, left ones with the reason."""
    root = Path(photos.folder)
    table = [
        (
            within(Path(photo.path), root),
            "{} x {}".format(*photo.size),
            "{} x {}".format(*photo.size_cut),
            f"{photo.kept:.0%}",
            f"{photo.repeats} x",
            f"'{photo.prompt}' ({photo.words})" + (" + mask" if photo.mask else ""),
        )
        for photo in photos.photos
    ]
    head = ("picture", "pixels", "crop", "keeps", "epoch", "prompt")
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *table)
    ]
    return rows + [f"{within(Path(left.path), root)}  left out: {left.why}" for left in photos.left]


def _place(config: Config, folder: Path) -> Path:
    """Where the sheet goes: never among the photos, which would find it there next time."""
    place = Path(config.run.output_dir or "runs")
    if folder.resolve() in (place.resolve(), *place.resolve().parents):
        place = folder.resolve().parent
    return place / f"photos-{folder.resolve().name}.png"


def _draw(photos: PhotoSet, problems: list[str], path: Path) -> None:
    shown, root = [*photos.photos, *photos.left][:MOST], Path(photos.folder)
    told = {text for text in problems if of_left(text) or " look alike: " in text}  # each picture says so itself
    tiles, captions = [], []
    for each in shown:
        if isinstance(each, Photo):
            about = {text: said for text in problems if (said := _of_this(each.name, text))}
            told |= about.keys()
            tiles.append(_tile(each))
            captions.append(_caption(each, root, [*about.values(), *_alike(each, photos)]))
        else:
            tiles.append(_crossed_out(Path(each.path)))
            captions.append(f"{within(Path(each.path), root)}\n! left out: {each.why}")
    rest = len(photos.photos) + len(photos.left) - len(shown)
    title = photos.summary.partition(";")[0] + (f" ({rest} more not shown)" if rest else "")
    foot = [text for text in problems if text not in told]
    contact_sheet(tiles, captions, path, side=SIDE, title=f"{photos.folder}: {title}", foot=foot)


def _alike(photo: Photo, photos: PhotoSet) -> list[str]:
    """Which others are frames of the same burst; of many the sentence about all of them names a few only."""
    root = Path(photos.folder)
    others = [each for each in photos.photos if each is not photo and looks.same(each.bits, photo.bits)]
    return [f"looks like {listed([within(Path(each.path), root) for each in others], 2)}"] if others else []


def _caption(photo: Photo, root: Path, about: Iterable[str]) -> str:
    times = f", {photo.repeats} times an epoch" if photo.repeats > 1 else ""
    shape = "{} x {}".format(*photo.size_cut)
    mask = ", masked" if photo.mask else ""
    lines = [within(Path(photo.path), root), f"{shape}, keeps {photo.kept:.0%}{times}{mask}"]
    lines.append(f"'{photo.prompt}' ({photo.words})")
    return "\n".join([*lines, *(f"! {text}" for text in about)])


def _of_this(name: str, problem: str) -> str:
    """What a sentence says about the picture called `name`, for the place below it; empty: nothing, or more than that."""
    if problem.startswith(f"{name} is left out"):
        return ""
    return problem.removeprefix(f"{name} ") if problem.startswith(f"{name} ") else ""


def _tile(photo: Photo) -> Image.Image:
    """The picture as it is, darker where the plain crop does not reach, the crop framed."""
    from trainer.data.crops import center

    picture = pictures.read(Path(photo.path)).rgb
    scale = SIDE / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    box = [round(edge * scale) for edge in center(photo.size, photo.size_cut).box]
    dark = Image.blend(small, Image.new("RGB", small.size, "black"), 0.65)
    dark.paste(small.crop(box), box[:2])
    ImageDraw.Draw(dark).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=TAKEN, width=2)
    return dark


def _crossed_out(path: Path) -> Image.Image:
    try:
        picture = pictures.read(path).rgb
    except pictures.Unreadable:
        picture = Image.new("RGB", (SIDE, SIDE * 2 // 3), (225, 225, 225))
    picture.thumbnail((SIDE, SIDE))
    faded = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.6)
    pen = ImageDraw.Draw(faded)
    right, lower = faded.width - 1, faded.height - 1
    for line in ((0, 0, right, lower), (0, lower, right, 0)):
        pen.line(line, GONE, 3)
    return faded
