"""A small model and latents that belong to no picture, for the guard's tests."""

import torch

from trainer.data.dataset import Dataset, Example
from trainer.models import SD1
from trainer.models.vae import Latents


def small_data():
    parts = SD1.tiny()
    generator = torch.Generator().manual_seed(1)

    def example(name, prompt):
        return Example(
            name,
            torch.randn(4, 8, 8, generator=generator),
            torch.full((4, 8, 8), 0.1),
            prompt,
            None,
            (64, 64),
            (0, 0),
            (64, 64),
        )

    width = parts.denoiser.config.cross_attention_dim
    texts = {
        p: {"text": torch.randn(77, width, generator=generator)} for p in ("a photo of sks dog", "a photo of a dog", "")
    }
    data = Dataset(
        [[example("p0", "a photo of sks dog")]],
        [example(f"c{i}", "a photo of a dog") for i in range(14)],
        [1],
        texts,
        {},
        SD1,
        (64, 64),
        Latents(scale=0.2),
    )
    return parts, data, [example("held", "a photo of sks dog")]
