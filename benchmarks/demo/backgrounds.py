"""Backgrounds: where a subject can stand. Places are perspective crops of photographic panoramas (CC0) or simple
painted landscapes; the rest are plain colours.

A crop of an equirectangular panorama is a look-up: each pixel of the wanted picture is a ray, and the ray's
longitude and latitude are its column and row. A few fixed directions per place, slightly jittered, keep a place
recognisable for a model that sees it only a few thousand times.
"""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path

import numpy as np

PANORAMAS = {  # words in the caption -> panorama
    "in a forest": "forest",
    "in a city": "city",
    "in a park": "park",
    "in the sky": "sky",
    "in a room": "apartment",
    "in a studio": "studio",
    "in a lab": "lab",
    "at dawn": "dawn",
    "in a workshop": "workshop",
}
PAINTED = ("on a beach", "in the snow", "in space", "under water")
PLACES = (*PANORAMAS, *PAINTED)
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 210, 50),
    "green": (52, 160, 70),
    "blue": (45, 95, 215),
    "purple": (130, 60, 180),
    "pink": (245, 130, 180),
    "brown": (125, 80, 45),
    "black": (28, 28, 32),
    "white": (244, 244, 244),
    "gray": (135, 135, 140),
}
PLAIN = tuple(f"on {'an' if c[0] in 'aeiou' else 'a'} {c} background" for c in COLOURS)
CONTEXTS = (*PLACES, *PLAIN)
DIRECTIONS = (20, 200, 110, 290)  # degrees of longitude


def panoramas(modules: Path) -> dict[str, np.ndarray]:
    """Context words -> (256, 512, 3) floats in 0..1, tone-mapped from the packaged EXR."""
    return {words: _read(modules / f"@pmndrs/assets/hdri/{name}.exr.js") for words, name in PANORAMAS.items()}


def draw(
    context: str, side: int, rng: np.random.Generator, maps: dict[str, np.ndarray], calm: bool = False
) -> np.ndarray:
    """(side, side, 3) floats in 0..1; `calm` looks in two directions only and hardly sways."""
    if context in maps:
        sway = 0.25 if calm else 1.0
        yaw = DIRECTIONS[rng.integers(2 if calm else 4)] + rng.uniform(-6, 6) * sway
        return crop(maps[context], yaw, -6 + rng.uniform(-3, 3) * sway, 80 + rng.uniform(-4, 4) * sway, side)
    if context in PAINTED:
        return np.clip(_paint(context, side, rng), 0, 1)
    return _plain(list(COLOURS.values())[PLAIN.index(context)], side, rng)


def crop(panorama: np.ndarray, yaw: float, pitch: float, fov: float, side: int) -> np.ndarray:
    """A pinhole camera's view, bilinear, from rays on a sphere."""
    half = np.tan(np.radians(fov) / 2)
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis * half, -axis * half)
    p = np.radians(pitch)
    up, forward = y * np.cos(p) + np.sin(p), np.cos(p) - y * np.sin(p)
    longitude = np.degrees(np.arctan2(x, forward)) + yaw
    latitude = np.degrees(np.arctan2(up, np.hypot(x, forward)))
    height, width = panorama.shape[:2]
    column, row = longitude / 360 * width, np.clip((90 - latitude) / 180 * height, 0, height - 1.001)
    c, r = np.floor(column).astype(int), row.astype(int)
    fc, fr = (column - c)[..., None], (row - r)[..., None]
    pick = lambda rr, cc: panorama[rr, cc % width]  # noqa: E731
    return (
        (pick(r, c) * (1 - fc) + pick(r, c + 1) * fc) * (1 - fr)
        + (pick(r + 1, c) * (1 - fc) + pick(r + 1, c + 1) * fc) * fr
    ).astype(np.float32)


def _plain(colour: tuple[int, int, int], side: int, rng: np.random.Generator) -> np.ndarray:
    shade = np.array(colour, np.float32) / 255 + rng.normal(0, 0.015, 3).astype(np.float32)
    ramp = np.linspace(0.03, -0.03, side, dtype=np.float32)[:, None, None]  # light comes from above
    return np.clip(shade + ramp + np.zeros((side, side, 3), np.float32), 0, 1)


def _paint(context: str, side: int, rng: np.random.Generator) -> np.ndarray:
    y = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, side, dtype=np.float32)[None, :, None]
    grain = rng.normal(0, 0.012, (side, side, 1)).astype(np.float32)
    rgb = lambda *v: np.array(v, np.float32)  # noqa: E731
    horizon = rng.uniform(0.42, 0.52)
    if context == "on a beach":
        sky = rgb(0.52, 0.80, 0.96) + y * 0.25
        sea = rgb(0.10, 0.52, 0.72) + np.zeros_like(x)
        sand = rgb(0.93, 0.82, 0.58) + grain - 0.08 * y
        shore = horizon + 0.14 + 0.025 * np.sin(x * 7 + rng.uniform(0, 6))
        return np.where(y < horizon, sky, np.where(y < shore, sea, sand))
    if context == "in the snow":
        hill = horizon + 0.05 * np.sin(x * 5 + rng.uniform(0, 6))
        ground = rgb(0.95, 0.97, 1.0) - 0.06 * y + grain
        picture = np.where(y < hill, rgb(0.66, 0.78, 0.90) + 0.2 * y, ground)
        return _dots(picture, rng, 34, rgb(1, 1, 1))
    if context == "in space":
        return _dots(rgb(0.03, 0.03, 0.11) + 0.05 * y + np.zeros_like(x), rng, 42, rgb(1, 1, 0.9))
    picture = rgb(0.05, 0.55, 0.72) * (1.25 - 0.75 * y) + 0.05 * np.sin((x + y * 0.5) * 12 + rng.uniform(0, 6)) * (
        1 - y
    )
    return np.where(y > 0.88 + 0.02 * np.sin(x * 9), rgb(0.62, 0.56, 0.38), picture + grain)


def _dots(picture: np.ndarray, rng: np.random.Generator, count: int, colour: np.ndarray) -> np.ndarray:
    """Snowflakes or stars of about one sixty-fourth of the side."""
    side, picture = picture.shape[0], picture.copy()
    size = max(1, side // 64)
    for row, column in rng.integers(0, side - size, (count, 2)):
        picture[row : row + size, column : column + size] = colour * rng.uniform(0.85, 1.0)
    return picture


def _read(path: Path) -> np.ndarray:
    import OpenEXR

    data = base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text()).group(1))
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(data)
        file.flush()
        with OpenEXR.File(file.name) as exr:
            light = exr.channels()["RGB"].pixels.astype(np.float32)
    light = np.nan_to_num(light, nan=0.0, posinf=60.0, neginf=0.0).clip(0, 60)  # the sun overflows half precision
    light /= np.percentile(light.mean(-1), 70) / 0.45  # exposure: the 70th percentile is a bright mid-tone
    return np.clip(light / (1 + light) * 1.4, 0, 1) ** (1 / 2.2)
