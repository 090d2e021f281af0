"""Optimizers by name. "adamw" is ours and lives in the engine's buffers; all others are torch optimizers from here.

The engine makes one for each unit and steps it when that unit's turn for its update has come, except prodigy, whose
step size is estimated from all gradients together. They keep fp32 weights and their own state, so low-bit weights, low-bit
moments, streaming and fp16 scaling are refused beside them, by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.machine import host, libraries
from trainer.policy import AdamHyper, Policy

OURS = "adamw"
NEEDS_ALL = {"prodigy"}  # gradients of the whole model at once
# bitsandbytes replaces a parameter that is not contiguous (channels last) by a copy, which the engine would never see: these
# get a parameter's numbers in a row, as they lie
IN_A_ROW = {"bnb_adamw8bit", "bnb_paged_adamw8bit"}
PACKAGES = {
    "bnb_adamw8bit": "bitsandbytes",
    "bnb_paged_adamw8bit": "bitsandbytes",
    "adafactor": "transformers",
    "prodigy": "prodigyopt",
}
INSTEAD = "use --optimizer adamw"


def check(policy: Policy) -> None:
    """Refuse what these optimizers cannot do; see also the techniques' own checks."""
    if policy.optimizer != OURS and policy.math == torch.float16:
        raise ConfigError(
            f"train.optimizer = {policy.optimizer!r} cannot skip a step that overflowed in fp16.",
            "Use --optimizer adamw, or --mixed_precision bf16 (or no).",
        )


def available(name: str) -> None:
    """ConfigError where the library of the optimizer `name` is missing or does not load. For the start of a run: its
    optimizer is made only when the model has been loaded."""
    if name in PACKAGES:
        libraries.need(f"--optimizer {name} needs", PACKAGES[name], INSTEAD)


def make(name: str, groups: list[dict[str, Any]], hyper: AdamHyper) -> torch.optim.Optimizer:
    """The optimizer `name` over parameter groups that each have "params" and "lr". Raises ConfigError for one that does not load."""
    shared = {"betas": hyper.betas, "eps": hyper.eps, "weight_decay": hyper.weight_decay}
    if groups[0]["params"][0].is_meta and name != "torch_adamw":
        return Weighed(groups, name)
    available(name)
    try:
        if name == "torch_adamw":
            return torch.optim.AdamW(groups, **shared)
        if name == "bnb_adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(groups, **shared)
        if name == "bnb_paged_adamw8bit":
            from bitsandbytes.optim import PagedAdamW8bit

            return PagedAdamW8bit(groups, **shared)
        if name == "adafactor":
            from transformers.optimization import Adafactor

            # the step size is the given one: no relative steps, no scaling by the weights
            return Adafactor(
                groups, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=hyper.weight_decay
            )
        if name == "prodigy":
            from prodigyopt import Prodigy

            return Prodigy(groups, safeguard_warmup=True, use_bias_correction=True, **shared)
    except (ImportError, AttributeError, OSError) as missing:  # a build that loads and does not fit
        raise libraries.lacking(f"--optimizer {name} needs", PACKAGES[name], INSTEAD) from missing
    raise AssertionError(f"unknown optimizer {name}")


class Weighed(torch.optim.Optimizer):
    """In a simulation: allocates the state that the named optimizer would, and computes nothing."""

    def __init__(self, groups: Iterable[Any], name: str):
        self.name = name
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self.state:
                    self.state[parameter] = dict(enumerate(self._state(parameter)))

    def _state(self, parameter: nn.Parameter) -> list[Tensor]:
        n, device = parameter.numel(), parameter.device
        if self.name == "prodigy":  # two moments, their sum and the starting point
            return [torch.empty(n, device=device) for _ in range(4)]
        if self.name == "adafactor":
            shape = parameter.shape
            sizes = [n] if len(shape) < 2 else [n // shape[-1], n // shape[-2]]
            return [torch.empty(size, device=device) for size in sizes]
        if n < 4096:  # bitsandbytes keeps small tensors in fp32
            return [torch.empty(n, device=device) for _ in range(2)]
        if self.name == "bnb_paged_adamw8bit":
            return [host.empty(n, torch.uint8, device) for _ in range(2)]
        return [torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2)] + [
            torch.empty(-(-n // 256), device=device) for _ in range(2)
        ]


LEARNED = ("d", "d0", "d_max", "d_numerator", "k")  # what prodigy keeps in its groups: its step size, so far


def export_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, numbers included: "3.exp_avg" belongs to the fourth parameter."""
    found = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{index}.{key}"] = _as_tensor(value)
    for key in LEARNED:
        if key in optimizer.param_groups[0]:
            found[f"group.{key}"] = _as_tensor(optimizer.param_groups[0][key])
    return found


def import_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """The inverse of `export_state`, on an optimizer over the same parameters."""
    parameters = _parameters(optimizer)
    for name, value in state.items():
        place, key = name.split(".", 1)
        if place == "group":
            optimizer.param_groups[0][key] = _as_value(value)
        else:
            parameter = parameters[int(place)]
            entry = _as_value(value)
            moves = isinstance(entry, Tensor) and entry.dim() > 0  # step counters stay on the host
            optimizer.state[parameter][key] = entry.to(parameter.device) if moves else entry


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _as_tensor(value: Tensor | float | int) -> Tensor:
    """Python's numbers become 0-d int64 and float64 tensors, which no optimizer here uses itself."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _as_value(tensor: Tensor) -> Tensor | float | int:
    return tensor.item() if tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.float64) else tensor.clone()
