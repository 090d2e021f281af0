"""Weights in 24 bits: the bf16 (or fp16) value the model computes with, and 8 correction bits kept by the optimizer.

The pair is the master weight; a DreamBooth update of 1e-6 of a weight, which bf16 alone rounds away, lands in the
correction. Stochastic rounding (16bit_sr) keeps no correction and is right on average instead. Rounding to nearest in
16 bits cannot be chosen: at lr 1e-6 it loses 99 % of the update. The format is described in kernels/weights24.py.

Saves: against fp32 weights under autocast 1 byte a weight (24bit) or 2 (16bit_sr), and autocast's casts.
Costs: nothing in speed (the correction moves with the moments). 16-bit weights compute in 16 bits on the CPU too. Not
       with optimizers other than adamw, which round to nearest.
Exact: no: computing in 16 bits; beyond that 24bit loses 2^-16 relative to each weight, 16bit_sr adds unbiased noise.
"""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.policy import Policy

TOLERANCE = 0.05  # relative difference of losses over three steps on tiny models: bf16 arithmetic


FIELDS = ("weights",)


def enabled(policy: Policy) -> bool:
    return policy.weights != "fp32"


def check(policy: Policy) -> None:
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"memory.weights = {policy.weights!r} cannot be combined with train.optimizer = {policy.optimizer!r}, "
            "which would round updates to 16 bits.",
            "Use --optimizer adamw, or --weights fp32.",
        )
