"""Adam's moments in 8 or 4 bits, quantised in blocks with a scale each; kernels/moments.py says how.

Both moments are read, updated and written back in the one pass that also updates the weights, so they are fp32 only
inside a register. With 4 bits zero is not representable in the second moment, because it stands in a denominator
(arXiv 2309.01507).

Saves: of 8 bytes a weight 5.9 (8bit) or 6.9 (4bit).
Costs: nothing in speed: the pass is bound by memory, and moves less. Only with the optimizer adamw.
Exact: no: 8bit stays within 1 % of fp32 Adam's update, 4bit within a few (tests/memory/test_contract.py has the limits).
"""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.policy import Policy

TOLERANCE = 0.05


FIELDS = ("moments",)


def enabled(policy: Policy) -> bool:
    return policy.moments != "fp32"


def check(policy: Policy) -> None:
    if policy.optimizer != "adamw":
        raise ConfigError(
            f"memory.moments = {policy.moments!r} has no effect with train.optimizer = {policy.optimizer!r}.",
            "Use --optimizer adamw, or leave out --moments.",
        )
