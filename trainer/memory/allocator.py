"""Allocator settings against fragmentation: memory that is free but in the wrong pieces counts as used.

Expandable segments let the caching allocator grow and shrink one mapping instead of keeping odd-sized pieces, which
matters when units of different sizes visit one after another. Set before CUDA starts; a setting of the user's own wins.

Saves: reserved memory (what nvidia-smi shows), not allocated memory.
Costs: nothing known on Linux; Windows ignores it. Combines with everything.
Exact: yes.
"""

from __future__ import annotations

import os

import torch

from trainer.policy import Policy

SETTINGS = "expandable_segments:True"


FIELDS = ()


def enabled(policy: Policy) -> bool:
    return True


def check(policy: Policy) -> None:
    """Nothing forbids it."""


def start() -> bool:
    """Set it for this process; False where it is too late or somebody has chosen otherwise."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if any(name in os.environ for name in names) or (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return False
    os.environ[names[0]] = SETTINGS
    return True


def release() -> None:
    """Give cached memory back between phases."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
