"""What somebody leafing through the photos would see at once: the same picture twice, frames of one burst, a blurred
one, a black one.

Two small copies of a picture answer all of it. Likeness is the difference hash (imagehash's dhash: which of neighbouring
pixels of a 9 x 8 copy is brighter, 64 bits). Between photos of one subject from the DreamBooth data set at least 20 of the
64 bits differ, between a photo and a copy of it shifted by 2 % of its width, cropped and noised at most 11. Sharpness is
the Laplacian's share of the contrast, in the sharpest tenth of the picture: 0.52 and more in those photos, at most 0.22
where they are blurred by 2 pixels at 512, so a sharp subject before a soft background passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from trainer.machine.libraries import loads

ALIKE = 10  # of 64 bits
SAME = 1.5  # mean difference of small copies, of 255: what JPEG adds, but no retouching
SIDE = 512  # pixels at which sharpness is judged, what the models see
TELLING = 256  # below so many pixels a picture says too little about its sharpness
TILES = 8
BLURRED, BLACK, FLAT = 0.25, 16, 6.0


@dataclass(frozen=True)
class Look:
    """size: of the picture; tiny, small: 8 x 8 and 32 x 32 copies; hash: None without imagehash;
    sharpness: nan where it cannot be told; brightness, contrast: mean and deviation of its greys; blank: one colour."""

    size: tuple[int, int]
    tiny: np.ndarray
    small: np.ndarray
    hash: Any
    sharpness: float
    brightness: float
    contrast: float
    blank: bool

    @property
    def bits(self) -> int | None:
        """The difference hash as a number, for whoever compares pictures later; None without imagehash."""
        return None if self.hash is None else int(str(self.hash), 16)

    def spoiled(self) -> bool:
        """Whether there is hardly anything to see."""
        return self.contrast < FLAT or (self.brightness < BLACK and self.contrast < 2 * FLAT)

    def complaint(self) -> str:
        """What is wrong and what it does, as the end of a sentence; empty: nothing."""
        if self.brightness < BLACK and self.contrast < 2 * FLAT:
            return "is nearly black: the model learns the darkness as a trait of the subject"
        if self.contrast < FLAT:
            return "is nearly one colour everywhere: there is hardly anything in it to learn"
        if self.sharpness < BLURRED:
            return "is blurred: the model learns to draw the subject blurred"
        return ""


def look(rgb: Image.Image) -> Look:
    grey = rgb.convert("L")
    scale = min(1.0, SIDE / min(grey.size))
    if scale < 1:
        grey = grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BOX)
    tiny, small = (np.asarray(rgb.resize((n, n), Image.Resampling.BOX), dtype=np.float32) for n in (8, 32))
    values = np.asarray(grey, dtype=np.float32)
    blank = all(high - low <= 2 for low, high in rgb.getextrema())
    return Look(
        rgb.size, tiny, small, _hash(grey), _sharpness(values), float(values.mean()), float(values.std()), blank
    )


def can_compare() -> bool:
    """Whether frames of a burst can be told from photos."""
    return loads("imagehash")


def _hash(grey: Image.Image) -> Any:
    if not can_compare():
        return None
    import imagehash

    return imagehash.dhash(grey)


def _sharpness(values: np.ndarray) -> float:
    """The Laplacian's deviation as a share of the contrast in a tile, in the sixth sharpest of 64 tiles."""
    if min(values.shape) < TELLING:
        return float("nan")
    edges = 4 * values[1:-1, 1:-1] - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    height, width = (side // TILES for side in edges.shape)

    def deviations(of: np.ndarray) -> np.ndarray:
        return of[: height * TILES, : width * TILES].reshape(TILES, height, TILES, width).std(axis=(1, 3)).ravel()

    return float(np.sort(deviations(edges) / (deviations(values[1:-1, 1:-1]) + 4))[-6])


class Album:
    """Pictures seen so far, by name; finds one that was saved again in another format, which no checksum does."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.looks: list[Look] = []
        self.tiny = np.empty((0, 192), dtype=np.float32)

    def twin(self, look: Look) -> str:
        """The name of a picture that is the same to the eye; empty where there is none."""
        near = np.flatnonzero(np.abs(self.tiny - look.tiny.reshape(-1)).mean(axis=1) < SAME) if self.names else ()
        for index in near:
            other = self.looks[index]
            if other.size == look.size and np.abs(other.small - look.small).mean() < SAME:
                return self.names[index]
        return ""

    def add(self, name: str, look: Look) -> None:
        self.names.append(name)
        self.looks.append(look)
        self.tiny = np.vstack([self.tiny, look.tiny.reshape(1, -1)])


def same(one: int | None, other: int | None) -> bool:
    """Whether two pictures are alike by their bits (`Look.bits`)."""
    return one is not None and other is not None and (one ^ other).bit_count() <= ALIKE


def bursts(looks: Sequence[Look]) -> Iterator[list[int]]:
    """Groups of two and more that look alike, as indices: each is alike to another of its group."""
    left = list(range(len(looks)))
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while it is walked
            alike = [other for other in left if _alike(looks[member], looks[other])]
            group += alike
            left = [other for other in left if other not in alike]
        if len(group) > 1:
            yield sorted(group)


def _alike(one: Look, other: Look) -> bool:
    return one.hash is not None and one.hash - other.hash <= ALIKE
