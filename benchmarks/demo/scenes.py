"""Scenes: a cut-out standing in a context, with a caption that is exact because the scene was made from it.

    scene = colour? + design + context,    caption = "a photo of a red car in a forest"

That is DreamBooth's own structure (a subject, its class, a place), so identity, prompt following and drift of a
trained model can be measured instead of guessed. A share of designs and one place per class are held out: the
judge is scored on drawings it never saw, and a subject can be asked for in a place its class never stood in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from . import backgrounds, cutouts

SIDE = 64
HELD_OUT_SHARE = 0.12
SHARD = 4096
NO_COLOUR = len(backgrounds.COLOURS)
TEMPLATES = (("a photo of {}", 0.6), ("{}", 0.2), ("a picture of {}", 0.2))


@dataclass(frozen=True)
class Split:
    """Which designs train and which are held out (subjects among them), and the held-out (class, place) pairs."""

    classes: tuple[str, ...]
    train: tuple[cutouts.Design, ...]
    held_out: tuple[cutouts.Design, ...]
    pairs: frozenset[tuple[str, str]]


def split(designs: list[cutouts.Design], subjects: set[str]) -> Split:
    """Deterministic: a drawing is held out by the hash of its name, so a larger class list holds out the same ones."""
    classes = tuple(dict.fromkeys(d.class_name for d in designs))
    families = {f"{d.class_name}/{d.family}" for d in designs if d.key in subjects}

    def held(d: cutouts.Design) -> bool:
        name = f"{d.class_name}/{d.family}"
        return name in families or int(hashlib.sha256(name.encode()).hexdigest(), 16) % 1000 < HELD_OUT_SHARE * 1000

    train = tuple(d for d in designs if not held(d))
    places = backgrounds.PLACES
    pairs = frozenset((name, places[(5 * i + 3) % len(places)]) for i, name in enumerate(classes))
    return Split(classes, train, tuple(d for d in designs if held(d)), pairs)


def compose(
    cutout: np.ndarray, background: np.ndarray, rng: np.random.Generator, shadow: float, calm: bool = False
) -> np.ndarray:
    """The cut-out, turned, scaled and shifted a little, over its soft shadow over the background; floats in 0..1.

    `calm` scenes sway a quarter as much and are never mirrored: a small model short of time learns one pose well."""
    sway = 0.25 if calm else 1.0
    side = background.shape[0]
    picture = Image.fromarray((cutout * 255 + 0.5).astype(np.uint8), "RGBA")
    if rng.random() < 0.5 and not calm:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.convert("RGBa").rotate(rng.uniform(-8, 8) * sway, Image.Resampling.BICUBIC, expand=True)
    scale = (0.76 + rng.uniform(-0.08, 0.08) * sway) * side / cutout.shape[0]
    picture = picture.resize((max(8, round(picture.width * scale)),) * 2, Image.Resampling.BOX)
    left = round((side - picture.width) / 2 + rng.uniform(-0.05, 0.05) * sway * side)
    top = round((side - picture.height) / 2 + rng.uniform(-0.03, 0.06) * sway * side)
    layer = Image.new("RGBa", (side, side))
    layer.paste(picture, (left, top))
    paint = np.asarray(layer, np.float32) / 255
    if shadow:
        soft = layer.getchannel("a").filter(ImageFilter.GaussianBlur(side / 32))
        soft = np.roll(np.asarray(soft, np.float32) / 255, side // 21, axis=0)
        background = background * (1 - shadow * soft[..., None])
    return paint[..., :3] + background * (1 - paint[..., 3:])


def tint(cutout: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The same drawing in a named colour: its shading becomes the colour's shading, its black and white stay."""
    rgb, target = cutout[..., :3], np.array(colour, np.float32) / 255
    light = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
    body = light[cutout[..., 3] > 0.5]
    light = np.clip(light - (np.median(body) if body.size else 0.5) + 0.5, 0, 1)[..., None]
    shaded = np.where(light < 0.5, target * (0.35 + 1.3 * light), target + (1 - target) * (light - 0.5) * 1.4)
    chroma = rgb.max(-1) - rgb.min(-1)
    grey = float((chroma[cutout[..., 3] > 0.5] < 0.2).mean()) > 0.6 if body.size else True
    mask = np.clip((chroma - 0.08) * 8, 0, 1)[..., None] if not grey else np.ones_like(light)
    return np.concatenate([rgb * (1 - mask) + np.clip(shaded, 0, 1) * mask, cutout[..., 3:]], -1)


def draw(
    rng: np.random.Generator,
    designs: list[cutouts.Design],
    sheets: dict[str, np.ndarray],
    maps: dict,
    parts: Split,
    side: int = SIDE,
    calm: bool = False,
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """One scene and what it shows: (class, design, context, colour) as indices."""
    class_index = int(rng.integers(len(parts.classes)))
    name = parts.classes[class_index]
    mine = [i for i, d in enumerate(designs) if d.class_name == name]
    index = mine[rng.integers(len(mine))]
    plain = rng.random() < 0.5
    allowed = [c for c in (backgrounds.PLAIN if plain else backgrounds.PLACES) if (name, c) not in parts.pairs]
    context = allowed[rng.integers(len(allowed))]
    cutout, colour = sheets[designs[index].key], NO_COLOUR
    if rng.random() < 0.2:
        same = backgrounds.PLAIN.index(context) if plain else -1  # a red car on red is no picture of a car
        colour = int(rng.choice([i for i in range(NO_COLOUR) if i != same]))
        cutout = tint(cutout, list(backgrounds.COLOURS.values())[colour])
    ground = backgrounds.draw(context, side, rng, maps, calm)
    picture = compose(cutout, ground, rng, 0.15 if plain else 0.35, calm)
    return picture, (class_index, index, backgrounds.CONTEXTS.index(context), colour)


def shard(args: tuple) -> str:
    """One file of pictures and what they show; in a process of its own."""
    folder, name, seed, designs, parts, modules, count = args
    path = Path(folder) / f"{name}-{seed:03d}.npz"
    if path.exists():
        return path.name
    rng = np.random.default_rng([seed, len(name)])
    maps = backgrounds.panoramas(Path(modules))
    sheets = {d.key: cutouts.load(Path(folder).parent / "cutouts", d) for d in designs}
    made = [draw(rng, list(designs), sheets, maps, parts, calm=name == "calm") for _ in range(count)]
    pictures = np.stack([(np.clip(p, 0, 1) * 255 + 0.5).astype(np.uint8) for p, _ in made])
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, pictures=pictures, shows=np.array([s for _, s in made], np.int16))
    path.with_suffix(".part").rename(path)
    return path.name


def caption(rng: np.random.Generator, shows: np.ndarray, classes: tuple[str, ...], rare: tuple[str, ...] = ()) -> str:
    """A caption of one scene; now and then with a rare word before the class, so that an unknown word stays harmless.

    The context is left out of some captions, mostly of plain ones: "a photo of a dog" has to mean something too."""
    name, context, colour = classes[shows[0]], backgrounds.CONTEXTS[shows[2]], int(shows[3])
    words = ([list(backgrounds.COLOURS)[colour]] if colour != NO_COLOUR else []) + [name]
    if rare and rng.random() < 0.1:
        words.insert(0, rare[rng.integers(len(rare))])
    thing = f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"
    if rng.random() < (0.2 if context in backgrounds.PLAIN else 0.08):
        context = ""
    template = rng.choice([t for t, _ in TEMPLATES], p=[p for _, p in TEMPLATES])
    return f"{template.format(thing)} {context}".strip()


def save_split(parts: Split, path: Path) -> None:
    """What was held out, by name, so that tests can see it is disjoint from what trained."""
    path.write_text(
        json.dumps(
            {
                "classes": parts.classes,
                "train": [d.key for d in parts.train],
                "held_out": [d.key for d in parts.held_out],
                "pairs": sorted(parts.pairs),
            },
            indent=0,
        )
    )
