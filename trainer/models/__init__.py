"""The model families: Stable Diffusion's in `sd`, flow-matching transformers in `dit`. Another transformer is a file or
four there, its configurations in `assets`, and a line in `dit/recognise.py`."""

from trainer.models.base import Defaults, Facts, Family, Parts, Source
from trainer.models.describe import check_text, check_weights, describe, guess
from trainer.models.dit import recognise
from trainer.models.load import check_vae, load, load_for, read_as
from trainer.models.sd.sd1 import DEMO, SD1
from trainer.models.sd.sd2 import SD2
from trainer.models.sd.sdxl import SDXL

STABLE: tuple[Family, ...] = (SD1, SD2, SDXL)  # with a UNet, and CLIP's text encoders, which may be trained
FAMILIES: tuple[Family, ...] = (*STABLE, *recognise.FAMILIES)

__all__ = [
    "DEMO",
    "FAMILIES",
    "SD1",
    "SD2",
    "SDXL",
    "STABLE",
    "Defaults",
    "Facts",
    "Family",
    "Parts",
    "Source",
    "check_text",
    "check_vae",
    "check_weights",
    "describe",
    "family",
    "guess",
    "load",
    "load_for",
    "read_as",
]


def family(name: str) -> Family:
    """The family called `name`, or "demo" (SD 1.x with the built-in model's defaults)."""
    return {each.name: each for each in (*FAMILIES, DEMO)}[name]
