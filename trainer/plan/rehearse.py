"""The stages of a run, performed on meta tensors under the tracker: the planner's only source of bytes and arithmetic.

Every function here calls the function that the real stage calls (the engine's step, the encoder, the sampler, the VAE)
with tensors that have shapes but no memory, so a change of the code changes the plan with it. What a run repeats (the
steps of a sampler, the pictures of a folder) is done once or twice here, because it costs the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trainer import memory
from trainer.data.batches import MicroBatch
from trainer.data.texts import through
from trainer.draw import sampler
from trainer.kernels.adamw_lowbit import block_bytes
from trainer.machine import host
from trainer.machine.team import ALONE, Rehearsed, Team
from trainer.memory.attention import Shape
from trainer.models import vae
from trainer.models.base import Parts, loaded
from trainer.objective.loss import Objective
from trainer.plan.plan import Standing
from trainer.plan.pretend import Asked, CardAttention
from trainer.plan.simulate import Tracker, Watched
from trainer.policy import Policy
from trainer.step.engine import Engine


@dataclass(frozen=True)
class Shapes:
    """What the photos and settings make of a step. size: (width, height); rows: of one micro-batch, class images included;
    apart: class images have a micro-batch of their own, as where a photo's bucket has another shape than theirs."""

    size: tuple[int, int]
    rows: int = 2
    instances: int = 1
    accumulation: int = 1
    masked: bool = False
    apart: bool = False

    def micro_batches(self) -> list[Shapes]:
        """Each of them alone, in order."""
        if not self.apart:
            return [self] * self.accumulation
        photos = replace(self, rows=self.instances)
        return [photos, replace(self, rows=self.rows - self.instances, instances=0)] * self.accumulation


def watch(run: Callable[[], object], *residents: nn.Module) -> Watched:
    """Run once on meta tensors beside modules that are on the card already."""
    tracker = Tracker("meta", host.holds)
    for module in residents:
        tracker.keep(module, "weights")
    tracker.restart()
    with CardAttention(), tracker:
        run()
    return tracker.watched()


@contextmanager
def engine(parts: Parts, policy: Policy, *, text: bool, team: Team = ALONE) -> Iterator[Engine]:
    """An engine over meta modules, as the run makes it over real ones; afterwards the modules are plain again."""
    policy = replace(
        policy, compile="off", cuda_graphs=False
    )  # neither changes which bytes are alive between operators
    restore = memory.prepare(loaded(parts.denoiser), policy, "meta")
    try:
        yield Engine(parts.family.units(parts, text=text), policy, torch.device("meta"), team)
    finally:
        restore()


def train(
    parts: Parts, made: Engine, shapes: Shapes, *, text: bool, steps: int = 1, objective: Objective | None = None
) -> Watched:
    """One optimizer step (the first one; `steps` more before it are not watched) as it is in the middle of a run: where
    updates wait for the next forward, behind another step. `objective`: the run's."""
    objective = objective or Objective(parts.noise())
    tracker = Tracker("meta", host.holds)
    _keep(tracker, made)
    others = made.team.followed(tracker) if isinstance(made.team, Rehearsed) else nullcontext()
    with CardAttention(), made.traffic.followed(tracker), others, tracker:
        for _ in range(steps + made.policy.deferred):
            with tracker.kind("inputs"):
                micro = [batch(parts, each, text) for each in shapes.micro_batches()]
            tracker.restart()
            run_step(made, micro, objective, shapes.accumulation)
    return tracker.watched()


def attention(parts: Parts, policy: Policy, rows: int, sizes: Iterable[tuple[int, int]]) -> list[Shape]:
    """The kinds of attention calls of forward passes over `rows` pictures of each of `sizes` (width, height), by falling
    number of scores; prompts are as long as they can be."""
    found: set[Shape] = set()

    def listen(asked: Asked) -> None:
        count, heads, queries, width = asked.query.shape
        found.add(Shape(count, heads, queries, asked.key.shape[2], width, asked.attn_mask is not None))

    with engine(parts, policy, text=False) as made, CardAttention(listen):
        for size in sizes:
            made.forward(batch(parts, Shapes(size, rows), text=False).values)
    return sorted(found, key=lambda shape: -shape.scores)


def run_step(made: Engine, micro: list[MicroBatch], objective: Objective, accumulation: int = 1) -> None:
    """One step of the engine with the loop's own loss."""
    rates = dict.fromkeys((unit.name.split(".")[0] for unit in made.units), 1e-6)
    made.step([batch.values for batch in micro], objective.of_step(micro, accumulation), rates)


def batch(parts: Parts, shapes: Shapes, text: bool) -> MicroBatch:
    """One micro-batch as the loop hands it over, on the card."""
    given = parts.family.inputs(parts, shapes.rows, shapes.size, text)
    values = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in given.items()}
    target = torch.empty(values["sample"].shape, device="meta")
    mask = torch.empty_like(target[:, :1]) if shapes.masked else None
    return MicroBatch(values, target, torch.empty(shapes.rows, device="meta"), mask, shapes.instances, ())


def filled(made: MicroBatch, device: torch.device) -> MicroBatch:
    """A micro-batch of zeros in the shapes of `made`, on a real device; prompts are as long as they can be."""

    def real(tensor: Tensor) -> Tensor:
        return torch.full(tensor.shape, tensor.dtype == torch.bool, dtype=tensor.dtype, device=device)

    return replace(
        made,
        values={name: real(value) for name, value in made.values.items()},
        target=real(made.target),
        weights=real(made.weights),
        mask=None if made.mask is None else real(made.mask),
    )


def _keep(tracker: Tracker, made: Engine) -> None:
    """Book the engine's standing bytes by what they are; a state block holds corrections and moments side by side."""
    for holding in made.holdings:
        tracker.keep([holding.weights.home], "weights")
        tracker.keep([holding.state.home], "state")
        if holding.anchor is not None and holding.anchor.live is not None:
            tracker.keep([holding.anchor.live], "base weights")
        if holding.anchor is not None and holding.anchor.desk is not None:
            tracker.keep(holding.anchor.desk.sides, "base weights")


def split_state(parts: dict[str, int], made: Engine) -> dict[str, int]:
    """`parts` with the engine's state blocks shown as the corrections and the moments that lie in them side by side."""
    if "state" not in parts:
        return parts
    corrections = sum(block_bytes(h.tensors, [n for n in h.state_names if n == "correction"]) for h in made.holdings)
    whole = sum(block_bytes(h.tensors, h.state_names) for h in made.holdings)
    share = parts["state"] * corrections // max(whole, 1)
    shown = {"corrections": share, "moments": parts["state"] - share}
    return {name: size for name, size in (parts | shown).items() if name != "state" and size}


def export(made: Engine) -> Watched:
    """Every trained weight in full precision, one after the other, as the writers take them."""
    tracker = Tracker("meta", host.holds)
    _keep(tracker, made)
    tracker.restart()
    with tracker:
        for _ in made.master():
            pass
    return tracker.watched()


def encode_text(parts: Parts) -> Watched:
    """One prompt through the text encoders, each layer on the card for its turn alone."""
    tracker = Tracker("meta", host.holds)

    @contextmanager
    def visit(layer: nn.Module) -> Iterator[None]:
        tracker.keep(layer, "weights")
        yield
        tracker.forget(layer)

    with CardAttention(), tracker:
        rows = [parts.family.tokens(parts, [""])]
        for _ in through(parts.family.text_units(parts), rows, parts.family.text_values, "meta", visit):
            pass
    return tracker.watched()


def encode_picture(parts: Parts, size: tuple[int, int], tile: int | None) -> Watched:
    pixels = torch.empty(1, 3, size[1], size[0], device="meta")
    module = loaded(parts.vae)
    return watch(lambda: vae.encode_pixels(module, pixels, tile), module)


def decode_picture(parts: Parts, size: tuple[int, int], tile: int | None) -> Watched:
    module, kind = loaded(parts.vae), parts.latents
    latents = torch.empty(1, kind.channels, size[1] // kind.factor, size[0] // kind.factor, device="meta")
    return watch(lambda: vae.decode_latents(module, latents, tile), module)


def draw(
    parts: Parts, denoiser: nn.Module, size: tuple[int, int], pictures: int, made: Engine | None = None
) -> Watched:
    """Two steps of the sampler, with guidance. `made`: the engine behind `denoiser`, where it is a stand-in."""
    look = sampler.Look(size, steps=2)
    given = parts.family.inputs(parts, 1, size, False)
    # of ones: a mask of zeros would leave nothing of a prompt
    texts = {"": {name: torch.ones(given[name][0][1:], dtype=given[name][1]) for name in parts.family.text_values}}
    tracker = Tracker("meta", host.holds)
    if made is None:
        tracker.keep(denoiser, "weights")
    else:
        _keep(tracker, made)
    tracker.restart()
    steps = sampler.draw(parts, denoiser, texts, [""] * pictures, list(range(pictures)), look, "meta")
    with CardAttention(), tracker:
        for _ in range(look.steps):
            next(steps)
    return tracker.watched()


def standing(made: Engine, policy: Policy, summed: bool) -> Standing:
    """What an engine keeps between steps, bytes. summed: whether gradients are sums of several micro-batches, in fp32."""
    holdings, counted = made.holdings, made.bytes
    anchor, host = counted.get("anchor", 0), counted["host"]
    moving = [h.state.home.nbytes + (h.weights.home.nbytes if policy.stream == "all" else 0) for h in holdings]
    saved = sum(h.weights.home.nbytes + block_bytes(h.form, h.state_names) for h in holdings if h.n)
    wide = 4 if summed or made.team.size > 1 else 0
    trained = sum(h.share.count * max(wide, h.tensors["weight"][1].itemsize) for h in holdings)
    average = sum(4 * h.share.count for h in holdings)
    blocks = tuple(sorted(moving, reverse=True))
    return Standing(
        counted["weights"] + counted["state"] + anchor,
        counted["weights"],
        anchor,
        host,
        saved,
        trained,
        average,
        blocks,
    )
