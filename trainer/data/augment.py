"""Changes that fight overfitting and survive the cache: each photo gets a few fixed variants instead of endless
random ones.

Variant k of a photo follows from the run's seed, the photo's bytes and k alone (its own generator), so variants
are the same in every run, one changed photo re-encodes that photo only, and a larger number of variants keeps
the first ones.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

from trainer.data.crops import Size, View, center, place
from trainer.settings.config import Config, Data

MANY = 60  # photos; with more, the 800 steps of a subject show each fewer than 14 times


def views(photo: Size, digest: str, data: Data, size: Size, seed: int) -> list[View]:
    """All variants of one photo, the plain one first where crops are centred; mirrored ones follow their originals."""
    several = data.crop == "random" or data.crop_jitter > 0 or data.color_jitter > 0
    found = []
    for variant in range(data.crop_variants if several else 1):
        dice = _dice(seed, digest, variant)
        x, y, zoom, color = dice.random(), dice.random(), dice.random(), [dice.uniform(-1, 1) for _ in range(3)]
        if data.crop == "random":
            view = place(photo, size, x, y, 1 + data.crop_jitter * zoom)
        elif variant and data.crop_jitter:
            view = place(photo, size, *_around_center(photo, size, data.crop_jitter, x, y, zoom))
        else:
            view = center(photo, size)
        if variant and data.color_jitter:
            view = replace(view, color=tuple(round(1 + data.color_jitter * change, 3) for change in color))
        found += [view, replace(view, flip=True)] if data.random_flip else [view]
    return list(dict.fromkeys(found))


def _around_center(
    photo: Size, size: Size, jitter: float, x: float, y: float, zoom: float
) -> tuple[float, float, float]:
    """(x, y, zoom) of a crop zoomed by at most `jitter` whose middle moves by at most half of `jitter` of its side."""
    zoom = 1 + jitter * zoom
    plain = center(photo, size)
    width, height = (plain.box[2] - plain.box[0]) / zoom, (plain.box[3] - plain.box[1]) / zoom

    def spot(room: float, side: float, dice: float) -> float:
        return 0.5 if room <= 0 else min(1.0, max(0.0, 0.5 + (dice - 0.5) * jitter * side / room))

    return spot(photo[0] - width, width, x), spot(photo[1] - height, height, y), zoom


def _dice(seed: int, digest: str, variant: int) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {digest} {variant}".encode()).digest())


def recommendation(photos: int, config: Config) -> str:
    """A sentence for too few photos without any augmentation, and for more than one subject needs; empty where there is
    nothing to say.

    The DreamBooth paper uses three to five photos; below that a model soon repeats the photos' own framing. Hundreds are a
    style or a data set: a step shows one, so the steps of one subject hardly show each of them, and the class that holds a
    subject's neighbours in place holds back what was to be learned.
    """
    data, full = config.data, config.train.method == "full"
    if photos >= MANY:
        return (
            f"{photos} photos are more than one subject needs. Of one subject, the best 20 teach as much; a style or a set "
            "of many things wants a caption beside each photo, --no-with_prior_preservation and steps by epochs, such as "
            f"--num_train_epochs 10{', and --method lora learns it, too' * full}"
        )
    if photos > 4 or data.random_flip or data.crop == "random" or data.crop_jitter or data.color_jitter:
        return ""
    if photos == 1:
        return (
            "1 photo: its pose, light and background are learned as the subject's own; add photos, or vary it "
            f"(--crop_jitter 0.2 --color_jitter 0.1) and train less on it (--max_train_steps 300{', or --method lora' * full})"
        )
    return f"{photos} photos: consider --crop_jitter 0.1, or --random_flip if left and right may be swapped"
