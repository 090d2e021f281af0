"""Sharded state: of several cards each keeps the optimizer state of a slice of every unit, and updates that slice alone.

A unit's gradients are added up so that each card gets its slice of the sum (reduce-scatter), and new weights are put
together again (all-gather); the weights themselves are on all cards. It is the first two stages of ZeRO (arXiv 1910.02054),
cut unit by unit. Corrections, moments, waiting gradients and the moving average exist once, over all cards together.

Saves: with N cards, (N - 1)/N of the state's bytes on each (3.1 a weight of 24bit and 8bit), of gradients that wait, and of
       the moving average in RAM; and a quarter of what crosses the link, which with 16-bit weights is 6 bytes instead of 8.
Costs: a second message for each unit, and where updates wait for the next forward (gradients = ram) a window of one unit
       more. A checkpoint is put together by the first card while the others help. Only with the optimizer adamw;
       one card has nothing to share.
Exact: yes, bit for bit, and a run goes on with another number of cards.
"""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.policy import Policy

FIELDS = ("shard",)


def enabled(policy: Policy) -> bool:
    return policy.shard != "off"


def check(policy: Policy) -> None:
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"memory.shard = 'state' cannot be combined with train.optimizer = {policy.optimizer!r}, which keeps its own state.",
            "Use --optimizer adamw, or --shard off.",
        )
