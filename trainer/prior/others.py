"""Prior beyond the class: pictures of other prompts in the class half, so that what is neither subject nor class stays, too.

Class images hold the class; everything else moves with the subject, for nobody asks it not to. A share of the deck is
therefore given to other prompts: `prior.others` = 0.5 makes every second picture of the class half one of them. They are
drawn by the untouched model exactly as class images are, prompt by prompt, cached and listed in manifests of their own, and
class_images.json in the run's folder has each with its words. The prompts are those of a broad list that ships, or of the
person's own file; that of the class itself is left out.

Saves: what the class half alone lets go.
Costs: so many pictures more to draw once, and so much of the class half that no longer holds the class. Prior by prediction
       has so many of its latents of other prompts, and draws no picture more.
Exact: class images are the same, bit for bit, with and without others beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.photos import Photo, PhotoSet, class_prompt
from trainer.draw.painter import Painter
from trainer.errors import ConfigError
from trainer.events import Stage
from trainer.files.regular import text
from trainer.machine.team import ALONE, Team
from trainer.prior import images
from trainer.settings import keeping
from trainer.settings.config import Config

LISTS = Path(__file__).parent.parent / "assets" / "prompts"
BROAD = "broad"  # for families without a list of their own


def prompts(config: Config, family: str) -> list[str]:
    """The other prompts, each once. Raises ConfigError for a file without any."""
    shipped = LISTS / f"{family}.txt"
    path = Path(config.prior.others_prompts or (shipped if shipped.is_file() else LISTS / f"{BROAD}.txt"))
    lines = text(path, "name a text file with a prompt on each line").splitlines()
    words = (line.strip() for line in lines)
    found = [
        line for line in dict.fromkeys(words) if line and not line.startswith("#") and line != class_prompt(config)
    ]
    if not found:
        raise ConfigError(f"{path} names no prompt", "write one on each line, such as 'a photo of a car'")
    return found


def shares(words: Sequence[str], count: int) -> dict[str, int]:
    """How many pictures of each prompt make up `count`, as even as can be; of a long list every so-manyth."""
    if count < len(words):
        words = [words[i * len(words) // count] for i in range(count)]
    return {word: count // len(words) + (i < count % len(words)) for i, word in enumerate(words)}


def beside(found: PhotoSet, painter: Painter, config: Config, cache: Path, team: Team = ALONE) -> Stage[PhotoSet]:
    """Pictures of other prompts and behind them the class images `found`, from which readings keep some back."""
    count = keeping.others(len(found.photos), config.prior.others)
    pictures: list[Photo] = []
    for prompt, number in shares(prompts(config, painter.parts.family.name), count).items() if count else ():
        mine = config.model_copy(deep=True)
        mine.prior.class_prompt, mine.prior.class_data_dir = prompt, None
        folder = images.folder_for(painter.parts, mine, cache)
        drawn = yield from images.ensure(painter, mine, folder, count=number, team=team)
        pictures += drawn.photos
    return replace(found, photos=(*pictures, *found.photos))
