"""What noise does to latents and what the model answers with: one object, and nobody else knows a formula.

    DDPM   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps       T levels, timestep t = 0 .. T-1   (arXiv 2006.11239)
           target = eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0                          (arXiv 2202.00512)
    Flow   x_s = (1 - s) x_0 + s eps                           0 < s <= 1, timestep 1000 s       (arXiv 2209.03003)
           target = eps - x_0, the velocity of the straight line from picture to noise
           s = shift u / (1 + (shift - 1) u)                   larger pictures need more noise   (arXiv 2403.03206)

A timestep is what the denoiser is told: DDPM's are whole numbers, Flow's are not. Training draws it (`draw`), a
measurement spreads it (`at`), and previews walk down from pure noise with a scheduler of diffusers (`sampler`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from trainer.errors import ConfigError

T = 1000  # noise levels of every public model, and the denoiser's timestep for pure noise
GOLDEN = (5**0.5 - 1) / 2
GUIDANCE_RESCALE = 0.7  # arXiv 2305.08891, section 3.4

SAMPLERS = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing"}),
}  # trailing: the steps of arXiv 2305.08891, which begin at pure noise


class Noise(Protocol):
    """timesteps are (B,), latents, noise and what is made of them (B, C, h, w); everything on the CPU.

    guidance_rescale: how far guidance is pulled back to the contrast of the unguided prediction; 0 is not at all
    """

    @property
    def guidance_rescale(self) -> float: ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps as training sees them."""
        ...

    def at(self, shares: Sequence[float] | Tensor) -> Tensor:
        """The timesteps below which these shares of all that `draw` draws lie."""
        ...

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The denoiser's sample."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should answer."""
        ...

    def weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Loss weight of each timestep, (B,) fp32: min-SNR's (arXiv 2303.09556), or ones where `gamma` is None."""
        ...

    def as_strong_as(self, other: Noise, timesteps: Tensor) -> Tensor:
        """The timesteps at which this noise comes nearest to what `other` is at `timesteps`."""
        ...

    def sampler(self, steps: int, name: str = "dpm++") -> Any:
        """A scheduler of diffusers with its timesteps set, the way from noise to a picture: it begins at unit noise and
        its samples are what `mix` makes. `name`: for models with more than one way, of SAMPLERS."""
        ...


@dataclass(frozen=True)
class DDPM:
    """abar: (T,) fp64 cumulative products of 1 - beta; prediction: "epsilon" or "v_prediction"; schedule: the scheduler's
    configuration that `abar` was made from, which `sampler` needs."""

    abar: Tensor
    prediction: str = "epsilon"
    schedule: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, schedule: Mapping[str, Any], prediction: str = "epsilon", zero_terminal_snr: bool = False) -> DDPM:
        """Noise as a scheduler's configuration has it. `zero_terminal_snr` shifts and scales sqrt(abar) so that its last
        value is zero and its first stays (arXiv 2305.08891)."""
        start, end, count = schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]
        kind = schedule["beta_schedule"]
        assert kind in ("scaled_linear", "linear"), f"unknown noise schedule {kind}"
        power = 2 if kind == "scaled_linear" else 1
        ends = start ** (1 / power), end ** (1 / power)
        betas = torch.linspace(*ends, count, dtype=torch.float64, device="cpu") ** power
        signal = (1 - betas).cumprod(0)
        if zero_terminal_snr or schedule.get("rescale_betas_zero_snr"):
            root = signal.sqrt()
            signal = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return cls(signal, prediction, schedule)

    @property
    def ends_in_noise(self) -> bool:
        """Zero terminal SNR: nothing of the picture is left at the last timestep."""
        return bool(self.abar[-1] == 0)

    @property
    def guidance_rescale(self) -> float:
        """Models that begin in pure noise keep a picture's mean, and guidance overexposes them (arXiv 2305.08891)."""
        return GUIDANCE_RESCALE if self.ends_in_noise else 0.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.abar), (count,), generator=generator)

    def at(self, shares: Sequence[float] | Tensor) -> Tensor:
        shares = torch.as_tensor(shares, dtype=torch.float64)
        return (len(self.abar) * shares).long().clamp(max=len(self.abar) - 1)

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._levels(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._levels(timesteps)
        return signal * noise - sigma * latents

    def weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """min(SNR, gamma) / SNR for epsilon, whose limit at zero SNR is 1; min(SNR, gamma) / (SNR + 1) for v."""
        if gamma is None:
            return torch.ones(len(timesteps))
        abar = self.abar[timesteps]
        snr = abar / (1 - abar)
        capped = snr.clamp(max=gamma)
        if self.prediction == "v_prediction":
            return (capped / (snr + 1)).float()
        return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), 1.0).float()

    def as_strong_as(self, other: Noise, timesteps: Tensor) -> Tensor:
        assert isinstance(other, DDPM)
        levels = other.abar[timesteps]
        after = torch.searchsorted(-self.abar, -levels).clamp(1, len(self.abar) - 1)  # abar falls
        nearer = (self.abar[after - 1] - levels).abs() < (self.abar[after] - levels).abs()
        return after - nearer.long()

    def sampler(self, steps: int, name: str = "dpm++") -> Any:
        """At zero terminal SNR sigma begins at infinity, where only DDIM is defined."""
        import diffusers

        kind, settings = SAMPLERS["ddim" if self.ends_in_noise else name]
        keep = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        config = {k: v for k, v in self.schedule.items() if k in keep} | {"prediction_type": self.prediction} | settings
        if self.ends_in_noise:
            config["rescale_betas_zero_snr"] = True
        scheduler = getattr(diffusers, kind)(**config)
        scheduler.set_timesteps(steps)
        return scheduler

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(abar), sqrt(1 - abar)), each (B, 1, 1, 1) fp32."""
        abar = self.abar[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt().float(), (1 - abar).sqrt().float()


def _straight(steps: int) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Flow:
    """shift: of the noise levels that training draws; spread: their distribution before the shift, "uniform" or
    "logit_normal" with `mean` and `deviation`; schedule: the scheduler's configuration; walk: what its set_timesteps is
    told for so many steps beside their number, such as the model's own sigmas or the `mu` of its resolution."""

    shift: float = 1.0
    spread: str = "uniform"
    mean: float = 0.0
    deviation: float = 1.0
    schedule: Mapping[str, Any] = field(default_factory=dict, repr=False)
    walk: Callable[[int], Mapping[str, Any]] = field(default=_straight, repr=False)
    guidance_rescale: float = 0.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.at(1 - torch.rand(count, generator=generator))  # in (0, 1]: without noise there is no velocity

    def at(self, shares: Sequence[float] | Tensor) -> Tensor:
        shares = torch.as_tensor(shares, dtype=torch.float64)
        if self.spread == "logit_normal":
            shares = torch.sigmoid(self.mean + self.deviation * torch.special.ndtri(shares))
        return (T * self.shift * shares / (1 + (self.shift - 1) * shares)).float()

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = self._sigma(timesteps)
        return (1.0 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """The velocity's error is 1 / s times the picture's, so min-SNR's weight of the picture's error becomes
        s^2 min(SNR, gamma), with SNR = ((1 - s) / s)^2."""
        if gamma is None:
            return torch.ones(len(timesteps))
        sigma = timesteps.double() / T
        return torch.minimum((1 - sigma) ** 2, gamma * sigma**2).float()

    def as_strong_as(self, other: Noise, timesteps: Tensor) -> Tensor:
        return timesteps  # which are the noise levels themselves

    def sampler(self, steps: int, name: str = "dpm++") -> Any:
        """Euler's method along the straight lines, as the models' own pipelines draw."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        config = {"shift": self.shift, **self.schedule}
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
        scheduler.set_timesteps(steps, **self.walk(steps))
        return scheduler

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return (timesteps / T).view(-1, 1, 1, 1)


def of(schedule: Mapping[str, Any], prediction: str = "epsilon", zero_terminal_snr: bool = False) -> Noise:
    """Noise as a model's scheduler configuration has it. `prediction`: "epsilon", "v_prediction" or "flow"."""
    if prediction == "flow":
        if zero_terminal_snr:
            refuse_rescaling()
        return Flow(shift=schedule.get("shift", schedule.get("flow_shift", 1.0)), schedule=schedule)
    return DDPM.of(schedule, prediction, zero_terminal_snr)


def refuse_rescaling() -> NoReturn:
    """ConfigError: a zero terminal SNR was asked for where there always is one."""
    raise ConfigError(
        "train.zero_terminal_snr has no effect: a flow-matching model begins in pure noise anyway",
        "leave --zero_terminal_snr out",
    )


def golden(count: int) -> list[float]:
    """`count` shares that cover 0..1 evenly; a larger `count` keeps the first ones."""
    return [(0.5 + GOLDEN * i) % 1.0 for i in range(count)]
