"""Channels last: convolution weights (and with them all pictures inside the model) in NHWC order, as tensor cores want.

cuDNN otherwise converts on the way in and out of every convolution. The engine lays its flat buffers out like this, one
unit at a time (residency.py); the optimizer does not notice.

Saves: transient copies of the largest activations around convolutions.
Costs: nothing on CUDA with 16-bit compute; on a CPU it depends. Combines with everything.
Exact: within rounding (other convolution algorithms sum in another order).
"""

from __future__ import annotations

from typing import Any

from trainer.policy import Policy
from trainer.settings.config import Memory

TOLERANCE = 1e-4
FIELDS = ("channels_last",)


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    return {"channels_last": {"on": True, "off": False}.get(wanted.channels_last, device == "cuda")}


def enabled(policy: Policy) -> bool:
    return policy.channels_last


def check(policy: Policy) -> None:
    """Nothing forbids it."""
