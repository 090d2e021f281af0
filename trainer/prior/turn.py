"""What runs with one cache share is made by one of them at a time: the others wait, and then find it made.

Two presets of one subject that are started together share a cache, because it lies beside their output folders. Without a
turn both find nothing there, both make it, with other last bits, and each writes over what the other wrote: a run that goes on
later then finds things that it was not trained with.

    with Claim(folder) as claim:
        yield from come(claim, phase, "drawing these class images", team)
        ...  # look, and make what is missing

Of several cards the first holds the claim, and tells the others. A process that dies lets go of it, and whoever waits makes
what is still missing.
"""

from __future__ import annotations

import time

from trainer.events import Notice, Stage
from trainer.files.claim import Claim
from trainer.machine.phase import Phase
from trainer.machine.team import ALONE, Team

POLL_SECONDS = 1.0


def come(claim: Claim, phase: Phase, doing: str, team: Team = ALONE) -> Stage[None]:
    """Returns when `claim` is this run's. Whoever is asked to stop meanwhile is asked between two events, as anywhere.

    doing: what the other run is at, in words
    """
    if not (holder := team.told(lambda: _taken(claim))):
        return
    yield Notice(f"Another run ({holder}) is {doing}: this one waits for it, and goes on with what it made.")
    yield phase.start(detail="waiting for another run")
    while team.told(lambda: _taken(claim)):
        yield phase.progress(0)
        time.sleep(POLL_SECONDS)  # a signal that comes now has been heard by every card before the next event
    yield phase.end("waited for another run")


def _taken(claim: Claim) -> str:
    """By whom else. Where a disk takes no lock, as a folder that may only be read, nobody waits: there is nothing to write."""
    try:
        return claim.take()
    except OSError:
        return ""
