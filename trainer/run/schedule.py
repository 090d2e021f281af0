"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state.

The curves are those of transformers' `get_scheduler` (the same ones diffusers' scripts use); their lambda is taken out
of a scheduler built on a throw-away parameter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.settings.config import Train


def factor(train: Train, total_steps: int) -> Callable[[int], float]:
    """`factor(train, total)(k)`: what the learning rate is multiplied by in the step after `k` finished ones."""
    from transformers import get_scheduler

    extra = {
        "cosine_with_restarts": {"num_cycles": train.lr_num_cycles},
        "polynomial": {"power": train.lr_power},
    }.get(train.lr_scheduler, {})
    warmup = 0 if train.lr_scheduler == "constant" else train.lr_warmup_steps
    throwaway = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(train.lr_scheduler, throwaway, warmup, total_steps, scheduler_specific_kwargs=extra)
    return scheduler.lr_lambdas[0]
