"""What every test of whole runs starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.models import SD1, SDXL


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models and photos of two shapes. What runs cache is shared: each needs a name of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for family in (SD1, SDXL):
        family.pipeline(family.tiny()).save_pretrained(folder / family.name)
    (folder / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        small = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(small).resize((80, 64 + 16 * index)).save(folder / "photos" / f"{index}.png")
    return folder
