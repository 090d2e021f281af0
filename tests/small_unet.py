"""A UNet of nine units small enough to train for twenty steps in a test: skips, a time embedding that everybody reads,
text, a residual stream; and the same model as one plain forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.step.engine import Engine, Policy
from trainer.units import Unit

WIDTH, TEXT = 16, 12


def holder(name: str, module: nn.Module) -> nn.Module:
    """A module whose parameters carry full names, as the families' units have it."""
    prefix, last = name.split(".")
    outer, root = nn.Module(), nn.Module()
    outer.add_module(last, module)
    root.add_module(prefix, outer)
    return root


class Resnet(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(WIDTH, outputs)
        self.norm2, self.dropout = nn.GroupNorm(4, outputs), nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(self.dropout(F.silu(self.norm2(h)))) + self.shortcut(x)


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.q = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v, self.out = nn.Linear(TEXT, WIDTH), nn.Linear(TEXT, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        h = self.norm(tokens)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (self.q(h), self.k(text), self.v(text)))
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (tokens + h).transpose(1, 2).reshape(x.shape)


class Model(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Sequential(nn.Embedding(20, TEXT), nn.Linear(TEXT, TEXT))
        self.time = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.conv_in = nn.Conv2d(4, WIDTH, 3, padding=1)
        self.down = Resnet(WIDTH, WIDTH, dropout)
        self.shrink = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.cross = Cross()
        self.mid = Resnet(WIDTH, WIDTH, dropout)
        self.grow = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.up = Resnet(2 * WIDTH, WIDTH, dropout)
        self.conv_out = nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(self, v: dict[str, Tensor]) -> Tensor:
        text = self.words(v["input_ids"]) if "input_ids" in v else v["text"]
        time = self.time(v["timestep"][:, None].to(v["sample"].dtype) / 1000)
        first = self.conv_in(v["sample"])
        skip = self.down(first, time)
        h = self.mid(self.cross(self.shrink(skip), text), time)
        h = self.up(torch.cat([self.grow(F.interpolate(h, scale_factor=2.0)), skip], 1), time)
        return self.conv_out(h)

    def units(self, text: bool = False) -> list[Unit]:
        def unit(name, reads, writes, run, prefix="unet"):
            return Unit(f"{prefix}.{name}", holder(f"{prefix}.{name}", getattr(self, name)), reads, (writes,), run)

        words = [unit("words", ("input_ids",), "text", lambda ids: self.words(ids), "text")] if text else []
        return [
            *words,
            unit("time", ("sample", "timestep"), "time", lambda x, t: self.time(t[:, None].to(x.dtype) / 1000)),
            unit("conv_in", ("sample",), "first", lambda x: self.conv_in(x)),
            unit("down", ("first", "time"), "skip", lambda x, t: self.down(x, t)),
            unit("shrink", ("skip",), "small", lambda x: self.shrink(x)),
            unit("cross", ("small", "text"), "attended", lambda x, c: self.cross(x, c)),
            unit("mid", ("attended", "time"), "middle", lambda x, t: self.mid(x, t)),
            unit("grow", ("middle",), "large", lambda x: self.grow(F.interpolate(x, scale_factor=2.0))),
            unit("up", ("large", "skip", "time"), "joined", lambda x, s, t: self.up(torch.cat([x, s], 1), t)),
            unit("conv_out", ("joined",), "prediction", lambda x: self.conv_out(x)),
        ]


def batch(seed: int, rows: int = 2, text: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """(values, target)"""
    g = torch.Generator().manual_seed(seed)
    values = {"sample": torch.randn(rows, 4, 8, 8, generator=g), "timestep": torch.randint(1000, (rows,), generator=g)}
    if text:
        values["input_ids"] = torch.randint(20, (rows, 5), generator=g)
    else:
        values["text"] = torch.randn(rows, 5, TEXT, generator=g)
    return values, torch.randn(rows, 4, 8, 8, generator=g)


def batches(step: int, count: int, text: bool = False, rows: int = 2) -> list[tuple[dict[str, Tensor], Tensor]]:
    return [batch(100 * step + i, rows, text) for i in range(count)]


def take_step(
    engine: Engine,
    step: int,
    count: int = 1,
    lr: float | dict[str, float] = 1e-2,
    text: bool = False,
    rows: int = 2,
    **options,
):
    """One engine step on the data of `step`; returns the StepResult."""
    data = batches(step, count, text, rows)

    def loss(prediction: Tensor, i: int) -> Tensor:
        return (prediction.float() - data[i][1].to(prediction.device)).pow(2).mean() / count

    return engine.step([values for values, _ in data], loss, lr, **options)


def stored(engine: Engine) -> dict[str, Tensor]:
    """A copy of what a checkpoint would hold."""
    return {name: tensor.clone() for name, tensor in engine.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """The same names, and the same bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def end_alike(one: Engine, other: Engine, steps: Iterable[dict[str, Any]]) -> bool:
    """Whether both hold the same bits after the same steps, each given by options of `take_step`."""
    for number, options in enumerate(steps):
        for engine in (one, other):
            take_step(engine, number, **options)
    return same(stored(one), stored(other))


def train(
    policy: Policy,
    steps: int = 20,
    count: int = 1,
    lr: float | dict[str, float] = 1e-2,
    text: bool = False,
    model: Model | None = None,
):
    """(losses, fp32 weights, engine) after training with the engine."""
    engine = Engine((model or Model()).units(text), policy, "cpu")
    losses = torch.stack([take_step(engine, step, count, lr, text).losses[:, 0] for step in range(steps)])
    return losses, dict(engine.master()), engine


class FusedAdamW:
    """torch.optim.AdamW(fused=True) over each parameter's numbers in a row of whole vectors: the last few numbers of a
    parameter, which fill no vector, it rounds in another way, and the engine's buffers have none."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float):
        self.parameters = parameters
        self.rows = [torch.nn.Parameter(self._row(p.detach())) for p in parameters]
        self.optimizer = torch.optim.AdamW(self.rows, lr, weight_decay=1e-2, fused=True)

    @staticmethod
    def _row(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor.reshape(-1), (0, -tensor.numel() % 128))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for parameter, row in zip(self.parameters, self.rows, strict=True):
            row.grad = None if parameter.grad is None else self._row(parameter.grad)
        self.optimizer.step()
        for parameter, row in zip(self.parameters, self.rows, strict=True):
            parameter.data.copy_(row.detach()[: parameter.numel()].view_as(parameter))


def train_plainly(
    steps: int = 20,
    count: int = 1,
    lr: float = 1e-2,
    max_grad_norm: float = 1.0,
    text: bool = False,
    model: Model | None = None,
    fused: bool = True,
):
    """(losses, weights, norms) of the same training by autograd over the whole model, clip_grad_norm_ and torch's AdamW:
    the fused one, or the one that goes operation by operation."""
    model = model or Model()
    named = {name: p for unit in model.units(text) for name, p in unit.module.named_parameters()}
    parameters = list(named.values())
    optimizer = (
        FusedAdamW(parameters, lr) if fused else torch.optim.AdamW(parameters, lr, weight_decay=1e-2, foreach=False)
    )
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for values, target in batches(step, count, text):
            loss = (model(values).float() - target).pow(2).mean() / count
            loss.backward()
            losses.append(loss.detach())
        limit = max_grad_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), limit, foreach=False))
        optimizer.step()
    return torch.stack(losses).view(steps, count), {n: p.detach() for n, p in named.items()}, torch.stack(norms)
