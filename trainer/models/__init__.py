"""The model families. One is a folder here, a line in `FAMILIES`, and what `describe` and `load` ask to know and to fill it."""

from trainer.models.base import Defaults, Facts, Family, Parts, Source
from trainer.models.describe import check_weights, describe, guess
from trainer.models.load import check_vae, load, load_for, read_as
from trainer.models.sd.sd1 import DEMO, SD1
from trainer.models.sd.sd2 import SD2
from trainer.models.sd.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)

__all__ = [
    "DEMO",
    "FAMILIES",
    "SD1",
    "SD2",
    "SDXL",
    "Defaults",
    "Facts",
    "Family",
    "Parts",
    "Source",
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
    """The family called `name`: sd1, sd2, sdxl, or demo (SD 1.x with the built-in model's defaults)."""
    return {each.name: each for each in (*FAMILIES, DEMO)}[name]
