"""What the planner decides, and the engine and the painter obey: every choice about memory and precision as a frozen value.

Nothing here is "auto" any more; two runs with equal policies place equal bytes in equal places. The defaults are the
plain reference: fp32 everything, nothing recomputed, nothing streamed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class AdamHyper:
    """Settings of the optimizer that do not change during a run (the learning rate does)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    anchor: float = 0.0  # share of the way back to the base model's weights, after an update, for each unit of its rate


@dataclass(frozen=True)
class Policy:
    """The words are those of `[memory]` and `[train]` in trainer/settings/config.py."""

    weights: Literal["fp32", "24bit", "16bit_sr"] = "fp32"
    moments: Literal["fp32", "8bit", "4bit"] = "fp32"
    compute: torch.dtype = torch.float32
    checkpointing: Literal["off", "selective", "blocks"] = "off"
    boundaries: Literal["card", "ram"] = "card"
    stream: Literal["off", "state", "all"] = "off"
    resident_units: int = 0
    shard: Literal["off", "state"] = "off"
    gradients: Literal["card", "ram"] = "card"
    clipping: Literal["exact", "previous"] = "exact"
    early_updates: bool = False
    reach_mb: int = 0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    hyper: AdamHyper = field(default_factory=AdamHyper)
    seed: int = 0
    attention: Literal["sdpa", "xformers", "math"] = "sdpa"
    recompute_kernels: bool = False
    channels_last: bool = False
    compile: Literal["off", "blocks"] = "off"
    cuda_graphs: bool = False

    @property
    def math(self) -> torch.dtype:
        """What the model computes with. 16-bit weights cannot compute in fp32: the computing copy is then bf16."""
        return torch.bfloat16 if self.weights != "fp32" and self.compute == torch.float32 else self.compute

    @property
    def weight_dtype(self) -> torch.dtype:
        """How a trained weight is stored where the model reads it; fp32 weights with 16-bit compute run under autocast."""
        return torch.float32 if self.weights == "fp32" else self.math

    @property
    def two_passes(self) -> bool:
        """Whether all gradients must be known before the first update: for the exact global norm, and because one
        overflow anywhere cancels an fp16 step everywhere; prodigy's step size depends on all of them."""
        exact = self.clipping == "exact" and (self.max_grad_norm > 0 or self.math == torch.float16)
        return exact or self.optimizer == "prodigy"

    @property
    def deferred(self) -> bool:
        """Whether a unit's update waits for its next forward. Gradients that wait in RAM for the norm would come back, and
        the state with them, in a second pass that computes nothing to hide them behind; forward does."""
        return self.two_passes and self.gradients == "ram"

    @property
    def late(self) -> Policy:
        """The same with updates that wait for the norm: how a step is made again, and what early updates change nothing of."""
        return replace(self, early_updates=False, reach_mb=0)

    @property
    def anchor_stays(self) -> bool:
        """Whether the base model's weights lie on the card for the anchor; else they visit it with the state."""
        return self.stream == "off" and self.gradients == "card"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"compute": str(self.compute).removeprefix("torch.")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Policy:
        """The inverse of `as_json`."""
        hyper = AdamHyper(**values["hyper"] | {"betas": tuple(values["hyper"]["betas"])})
        return cls(**values | {"compute": getattr(torch, values["compute"]), "hyper": hyper})


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn within the budget, decided with the policy and kept beside it in a checkpoint.

    batch: pictures at a time; tile: pixels along a tile of the VAE, None = the whole picture; vae_dtype, denoiser_dtype:
    what a module computes with while it visits the card (None = fp32); park: the optimizer state makes room in RAM
    """

    batch: int = 4
    tile: int | None = None
    vae_dtype: torch.dtype = torch.float32
    denoiser_dtype: torch.dtype | None = None
    park: bool = False

    def as_json(self) -> dict[str, Any]:
        names = {
            name: str(dtype).removeprefix("torch.") if dtype is not None else None
            for name, dtype in (("vae_dtype", self.vae_dtype), ("denoiser_dtype", self.denoiser_dtype))
        }
        return asdict(self) | names

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Drawing:
        """The inverse of `as_json`."""
        names = ("vae_dtype", "denoiser_dtype")
        dtypes: dict[str, Any] = {
            name: getattr(torch, values[name]) if values[name] is not None else None for name in names
        }
        return cls(**values | dtypes)
