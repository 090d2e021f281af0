"""Contrast: the photos themselves under the class prompt, so that nothing but the identifier can tell the subject.

    under "a photo of sks dog"    the noised photo is to be denoised to the photo
    under "a photo of a dog"      to what the untouched model makes of that very noised photo

The two halves of DreamBooth's loss otherwise never meet: photos come with one prompt and the class's latents with the other, so
that a model may tell them apart by what it sees and change its class where that looks like the photos. With `prior.contrast`
a share of the latents of prior by prediction (prediction.py) are the photos', cut as class images are. On the built-in model,
whose text encoder passes over rare words, it needs the identifier's embedding to learn (`train.text_part`): then the
search's way "told apart" keeps class and rest where class images do not (benchmarks/NOTES.md).

Saves: class latents that need not be drawn.
Costs: so many fewer latents that show what else there is in the class; what photos alone could teach about the class is gone.
       Only with prior by prediction.
Exact: the class's own latents are the same, bit for bit, with and without photos beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.data import crops
from trainer.data.encode import Encoder
from trainer.data.photos import PhotoSet, class_prompt
from trainer.events import Stage
from trainer.settings.config import Config


def places(config: Config, prompts: Sequence[str], photos: int) -> dict[int, int]:
    """Which of the class's latents are which of so many photos', evenly among them. prompts: of all latents."""
    mine = [i for i, prompt in enumerate(prompts) if prompt == class_prompt(config)]
    count = round(len(mine) * config.prior.contrast)
    return {mine[n * len(mine) // count]: n % photos for n in range(count)}


def squares(encoder: Encoder, photos: PhotoSet, size: tuple[int, int]) -> Stage[Tensor]:
    """The photos' scaled latents, (N, C, H/f, W/f) fp32, of their middle in `size` (width, height)."""
    examples = yield from encoder.images([(photo, crops.center(photo.size, size)) for photo in photos.photos])
    return encoder.parts.latents.scaled(torch.stack([example.mean for example in examples]).float())
