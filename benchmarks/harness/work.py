"""The work that suites measure: a DreamBooth pair step of a real-size model with random weights, or of a tiny one.

Random weights have the footprint and the arithmetic of trained ones, so nothing is downloaded. `pairs` photos and as many
class images make a micro-batch; the engine's step is exactly the one that training runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models import Parts, family, load
from trainer.objective.loss import Objective
from trainer.plan.simulate import Tracker
from trainer.policy import Policy
from trainer.step.engine import Engine

from .timing import DEMO, Options

TINY_SIDE = 64  # pixels
# Random numbers are drawn once and repeated: drawing each weight took 11 s of one core for SD 1.5, in each row. A prime, so
# that no two rows of a matrix are alike.
PERIOD = 1048573


def parts(
    options: Options, *only: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Parts:
    """The model of `options`: tiny, or of real size with random weights of `dtype`, which are made on `device`, or the
    built-in one. `only` names the parts that are wanted, "denoiser" the family's own; of a real-size model the others stay
    without memory."""
    if options.model == DEMO:
        return load(DEMO)
    return family(options.model).tiny() if options.tiny else real(options.model, *only, device=device, dtype=dtype)


def real(name: str, *only: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Parts:
    """A public model's shapes, filled with small random numbers; norms start as identity, so activations stay finite."""
    made, device = family(name).meta(), torch.device(device)
    only = tuple(made.family.names.denoiser if part == "denoiser" else part for part in only)
    source = (torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)) * 0.02).to(device)
    for module_name, module in made.modules().items():
        if not only or module_name in only:
            fill(module.to(dtype), source)
    return made


@torch.no_grad()
def fill(module: nn.Module, source: Tensor) -> None:
    """Give `module` weights on the device of `source`, whose numbers are repeated for as long as there are weights."""
    module.to_empty(device=source.device)
    at = 0
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        flat, done = parameter.view(-1), 0
        while done < flat.numel():
            piece = source[at : at + flat.numel() - done]
            flat[done : done + piece.numel()].copy_(piece)
            done, at = done + piece.numel(), (at + piece.numel()) % source.numel()
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
        else:  # a table of places, a running mean or variance
            buffer.fill_(1)


def side(options: Options, made: Parts) -> int:
    """Pixels: the family's own, or few for a tiny model and the built-in one."""
    return TINY_SIDE if options.tiny or options.model == DEMO else made.family.resolution


@dataclass(frozen=True)
class Batch:
    """values: the engine's inputs; the first half of the rows are photos. The rest is what the loss asks for."""

    values: dict[str, Tensor]
    target: Tensor
    weights: Tensor
    instances: int
    mask: Tensor | None = None
    counts: tuple[int, int] | None = None
    reference: Tensor | None = None


def batch(made: Parts, pixels: int, pairs: int, device: torch.device, seed: int = 0) -> Batch:
    """A noised micro-batch of random latents and embeddings, 2 * pairs rows, on `device`."""
    generator = torch.Generator().manual_seed(seed)
    rows, latent = 2 * pairs, pixels // made.latents.factor
    clean = torch.randn(rows, made.latents.channels, latent, latent, generator=generator)
    noised = Objective(made.noise(size=(pixels, pixels))).draw(clean, generator)
    given = made.family.inputs(made, rows, (pixels, pixels), False)
    values = {"sample": noised.sample, "timestep": noised.timesteps}
    values |= {name: torch.randn(given[name][0], generator=generator) for name in made.family.text_values}
    values |= made.family.extra_values((pixels, pixels), (0, 0), (pixels, pixels), rows)
    on = {name: value.to(device) for name, value in values.items()}
    return Batch(on, noised.target.to(device), noised.weights.to(device), pairs)


def stepper(
    made: Parts, policy: Policy, batches: list[Batch], device: torch.device, lr: float = 2e-6
) -> tuple[Engine, Callable[[], Tensor]]:
    """An engine and a function that takes one optimizer step over the next of `batches` and returns its losses."""
    engine = Engine(made.family.units(made), policy, device)
    objective, taken = Objective(made.noise()), [0]

    def step() -> Tensor:
        now = batches[taken[0] % len(batches)]
        taken[0] += 1
        return engine.step([now.values], objective.of_step([now], 1), lr).losses

    return engine, step


def standing(engine: Engine) -> list[Tensor]:
    """What an engine keeps on the card between steps: weights and optimizer state, where they are not streamed."""
    return [block.home for holding in engine.holdings for block in (holding.weights, holding.state) if block.resident]


def live_peak(step: Callable[[], Tensor], stays: Iterable[Tensor]) -> tuple[int, Tensor]:
    """Bytes of tensors that live at the worst moment of one step on the CPU, what `stays` between steps included, and what
    the step returned. What the engine keeps in host memory is not counted, although here that is the same memory."""
    tracker = Tracker("cpu")
    tracker.keep(stays, "weights")
    with tracker:
        returned = step()
    return tracker.watched().card_peak, returned
