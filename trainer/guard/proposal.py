"""Which share of what was learned is best: the judge reads pictures at each, and the score of its readings decides.

    score = subject + prompt - drift of the class and of unrelated prompts        (rulings.py, as for keep_best)

A run that went too far for everything else has better models on its way, and they cost a few pictures to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.events import Controls, Notice
from trainer.guard.meters import Pictures
from trainer.guard.rulings import Rulings
from trainer.settings.config import Guard


def proposed(pictures: Pictures, settings: Guard, put: Callable[[float], None], shares: Sequence[float]) -> Notice:
    """The best of `shares` by what `pictures` reads; put(share) makes the weights those at a share. Drift counts from 0."""
    put(0.0)
    pictures.read(Controls())  # the base model, which all readings are compared with
    rulings, scores = Rulings(settings), {}
    for share in shares:
        put(share)
        values = pictures.read(Controls())
        assert values is not None, "nobody asks these controls to stop"
        scores[share] = rulings.score(values) or 0.0
    best = max(scores, key=lambda share: scores[share])
    said = ", ".join(f"{share:g}: {score:.2f}" for share, score in scores.items())
    return Notice(f"The judge {pictures.judge.name} proposes strength {best:g} (subject + prompt - drift is {said}).")
