"""Stands in for a denoiser in diffusers' pipelines and in our sampler, while the engine holds (and may stream) the weights.

Pipelines ask a denoiser for its dtype, its device and its prediction; everything else passes through to the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What diffusers returns; `output.sample` and `output[0]` are the same."""

    sample: Tensor


class Speaks(Protocol):
    """What of a family is asked: how arguments become the values that units read, and their prediction an answer."""

    def values_of(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...

    def answer(self, prediction: Tensor) -> Any: ...


class StandIn(nn.Module):
    """Called as its family's pipelines call the denoiser, and answers as that would."""

    def __init__(self, engine: Any, denoiser: nn.Module, family: Speaks):
        super().__init__()
        # kept out of nn.Module's registries: the stand-in owns no parameters, so nobody can move or save them through it
        for name, value in (("engine", engine), ("denoiser", denoiser), ("family", family)):
            object.__setattr__(self, name, value)

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.policy.weight_dtype

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)  # only what is not found here

    def told(self, values: Mapping[str, Tensor]) -> Tensor:
        """The units' prediction from named values, in the sample's dtype, for whoever needs no disguise."""
        return self.engine.forward(values).to(values["sample"].dtype)

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        answer = self.family.answer(self.told(self.family.values_of(*args, **kwargs)))
        return Output(answer) if return_dict else (answer,)
