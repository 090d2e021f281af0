"""What training never sees, so that overfitting can be measured: a photo or a crop of each, and two class images.

What is kept back follows from the pictures' bytes and from their number alone, so a resumed run keeps back the same.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.data import crops
from trainer.data.crops import View
from trainer.data.dataset import Dataset, Example
from trainer.data.photos import Photo, PhotoSet

ENOUGH_PHOTOS = 8  # from here on one whole photo can be spared; below, a crop of each is held out


def hold_out(photos: PhotoSet) -> tuple[PhotoSet, Photo | None]:
    """The photos to train on and one to keep back, where there are enough; which one follows from the bytes alone."""
    if len(photos.photos) < ENOUGH_PHOTOS:
        return photos, None
    spared = min(photos.photos, key=lambda photo: photo.digest)
    return replace(photos, photos=tuple(p for p in photos.photos if p is not spared)), spared


def said(spared: Photo) -> str:
    """Which photo training never sees, for the person who brought it."""
    return f"{spared.name} is kept back to measure overfitting (--no-watch trains on it, too)."


def held_views(photos: PhotoSet, spared: Photo | None, size: tuple[int, int]) -> list[tuple[Photo, View]]:
    """Pictures that training never sees: the photo kept back, or a mirrored, closer, off-centre crop of each."""
    if spared is not None:
        return [(spared, crops.center(spared.size, size))]
    return [(photo, replace(crops.place(photo.size, size, 0.2, 0.2, 1.25), flip=True)) for photo in photos.photos]


def hold_out_class(dataset: Dataset) -> tuple[Dataset, list[Example]]:
    """Two class images are kept back where ten or more remain."""
    if dataset.class_count < 12:
        return dataset, []
    rest = replace(dataset, classes=dataset.classes[:-2], class_repeats=dataset.class_repeats[:-2])
    return rest, dataset.classes[-2:]
