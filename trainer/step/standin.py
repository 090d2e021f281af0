"""Stands in for a UNet in diffusers' pipelines and in our sampler, while the engine holds (and may stream) the weights.

Pipelines ask a UNet for its configuration, its dtype and its prediction; everything else passes through to the module.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What diffusers returns; `output.sample` and `output[0]` are the same."""

    sample: Tensor


class StandIn(nn.Module):
    def __init__(self, engine: Any, unet: nn.Module):
        super().__init__()
        # kept out of nn.Module's registries: the stand-in owns no parameters, so nobody can move or save them through it
        object.__setattr__(self, "engine", engine)
        object.__setattr__(self, "unet", unet)

    @property
    def config(self) -> Any:
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.policy.weight_dtype

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def add_embedding(self) -> nn.Module:  # SDXL's pipeline reads its input width
        return self.unet.add_embedding

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None, return_dict: bool = True, **ignored: Any,
    ) -> Any:  # fmt: skip
        assert not any(value is not None for value in ignored.values()), f"unknown conditions {sorted(ignored)}"
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        values = {"sample": sample, "timestep": timestep, "text": encoder_hidden_states}
        if added_cond_kwargs:
            values |= {"pooled": added_cond_kwargs["text_embeds"], "time_ids": added_cond_kwargs["time_ids"]}
        prediction = self.engine.forward(values).to(sample.dtype)
        return Output(prediction) if return_dict else (prediction,)
