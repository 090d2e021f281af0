"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state.

The curves are those of transformers' `get_scheduler` (the same ones diffusers' scripts use); their lambda is taken out
of a scheduler built on a throw-away parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from trainer.settings.config import Train

POLYNOMIAL_END = 1e-7  # where diffusers' polynomial schedule ends


@dataclass(frozen=True)
class Rates:
    """The learning rate of each model that is trained, the denoiser's first, in any step.

    base: before the schedule; factor: `factor(...)`; text_stop: after so many steps text encoders learn no more
    """

    base: Mapping[str, float]
    factor: Callable[[int], float]
    text_stop: int | None = None

    @classmethod
    def of(cls, train: Train, denoiser: str) -> Rates:
        """`denoiser`: what its family calls the denoiser."""
        scale = train.train_batch_size * train.gradient_accumulation_steps if train.scale_lr else 1
        base = {denoiser: train.learning_rate * scale}
        if train.train_text_encoder:
            second = train.text_encoder_lr if train.text_encoder_2_lr is None else train.text_encoder_2_lr
            base |= {"text": train.text_encoder_lr * scale, "text_2": second * scale}
        return cls(base, factor(train, train.max_train_steps), train.text_encoder_stop_step)

    def at(self, done: int) -> dict[str, float]:
        """By model, for the step after `done` finished ones."""
        factor, stopped = self.factor(done), self.text_stop is not None and done >= self.text_stop
        return {name: 0.0 if stopped and name.startswith("text") else rate * factor for name, rate in self.base.items()}


def factor(train: Train, total_steps: int) -> Callable[[int], float]:
    """`factor(train, total)(k)`: what the learning rate is multiplied by in the step after `k` finished ones."""
    from transformers import get_scheduler

    rate = train.learning_rate or 1.0
    if train.scale_lr:
        rate *= train.train_batch_size * train.gradient_accumulation_steps
    extra = {
        "cosine_with_restarts": {"num_cycles": train.lr_num_cycles},
        "polynomial": {"power": train.lr_power, "lr_end": POLYNOMIAL_END if rate > POLYNOMIAL_END else 0.0},
    }.get(train.lr_scheduler, {})
    warmup = 0 if train.lr_scheduler == "constant" else train.lr_warmup_steps
    throwaway = torch.optim.SGD([torch.zeros(1)], lr=rate)  # the polynomial's end is a rate, no share
    scheduler = get_scheduler(train.lr_scheduler, throwaway, warmup, total_steps, scheduler_specific_kwargs=extra)
    return scheduler.lr_lambdas[0]
