"""The heart: a training step as a schedule over units.

Forward goes through the units in order and keeps what the policy says; backward goes through them in reverse: bring the
unit, recompute if needed, take its cotangents, hand its gradients to one optimizer call, send it home. All micro-batches
pass a unit before the next one's turn, so accumulation needs one unit-sized gradient buffer and a streamed unit is
brought once. Every choice of residency and recomputation is a value in `Policy`, not a code path, and nothing in a step
waits for the device, but for its norm where early updates hang on that.

    engine = Engine(units, Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, checkpointing="blocks"), "cuda")
    result = engine.step(micro_batches, loss, lr=2e-6)

How one unit is run is `runner`'s business, where its bytes live `residency`'s, what its gradients do `updates`'; what others
see between steps goes through `outside`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from trainer import memory
from trainer.files.asked import Asked
from trainer.machine.team import ALONE, Team
from trainer.memory import boundaries, checkpointing
from trainer.memory.clipping import Waiting
from trainer.memory.stream import Traffic
from trainer.policy import AdamHyper, Policy
from trainer.step import gradients, optim, outside, replay, residency
from trainer.step.ahead import Ahead
from trainer.step.gradients import Gradients
from trainer.step.ranks.exchange import Exchange
from trainer.step.ranks.settling import Settling
from trainer.step.route import Route
from trainer.step.runner import Runner
from trainer.step.standin import Speaks, StandIn
from trainer.step.updates import Updates
from trainer.units import Unit

__all__ = ["AdamHyper", "Engine", "Policy", "StepResult"]

Loss = Callable[[Tensor, int], "Tensor | tuple[Tensor, ...]"]


@dataclass(frozen=True)
class StepResult:
    """Both on the device; reading them is what waits. losses: (micro-batches, parts of the loss); grad_norm: () before clipping."""

    losses: Tensor
    grad_norm: Tensor


class Engine:
    """Takes the weights of `units` over: their parameters become views into the engine's buffers, `policy` says where."""

    def __init__(self, units: list[Unit], policy: Policy, device: torch.device | str, team: Team = ALONE):
        assert units[-1].writes == ("prediction",), "the last unit writes the prediction"
        memory.check(policy)
        optim.check(policy)
        self.units, self.policy, self.device, self.team = units, policy, torch.device(device), team
        self.runner = Runner(units, policy, self.device)
        self.traffic = Traffic(self.device)
        self.exchange = Exchange(team, policy)
        self.holdings = residency.hold(units, policy, self.traffic, self.exchange.share)
        self.exchange.offers |= outside.offers(self.holdings)
        for holding in self.holdings:
            gradients.watch(holding)
        self.updates = Updates(policy, self.device)
        self.settling = Settling(self.holdings, self.updates, self.exchange, self.traffic)
        self.shelves: list[dict[str, Tensor]] = []  # host memory of boundaries, by micro-batch
        self.routes: dict[tuple[bool, ...], Route] = {}
        self.learning: tuple[bool, ...] = ()  # which units' parameters require gradients now
        repeats = policy.cuda_graphs and not any(self.runner.draws)
        self.replay = replay.Replay(self.updates, self.abandon) if repeats and self.device.type == "cuda" else None

    # one step

    def step(
        self,
        micro_batches: Sequence[Mapping[str, Tensor]],
        loss: Loss,
        lr: float | Mapping[str, float],
        *,
        update: bool = True,
    ) -> StepResult:
        """One optimizer step over the sum of the micro-batches' losses.

        loss(prediction, i) returns the total to differentiate, or (total, *parts to report). `lr`: one rate, or rates by
        the first part of the units' names; what has no rate or 0 is frozen in this step and costs no backward.
        `update` False measures losses and norm and changes nothing, in the memory that a step with an update takes.
        """
        rates = [self._rate(unit, lr) for unit in self.units]

        def run(micro_batches: Sequence[Mapping[str, Tensor]], loss: Loss) -> tuple[Tensor, Tensor]:
            return self._run(micro_batches, loss, rates, update)

        if self.replay is None or not (update and isinstance(loss, replay.Exchangeable)):
            return StepResult(*run(micro_batches, loss))
        return StepResult(*(self.replay.step(run, micro_batches, loss, rates) or run(micro_batches, loss)))

    def _run(
        self, micro_batches: Sequence[Mapping[str, Tensor]], loss: Loss, rates: list[float], update: bool
    ) -> tuple[Tensor, Tensor]:
        """The step's operators. Returns losses and norm."""
        route = self._route(rates)
        self.updates.start(update, rates)
        self.settling.foresee(update, route.backward, self.learning)
        draws = self.settling.early and any(self.runner.draws)
        began = checkpointing.random_state(self.device) if draws else None
        losses, norm = self._pass(route, micro_batches, loss, rates, update)
        if self.policy.two_passes and self.updates.possible(update):
            self.updates.decide(norm, update)
            if not self.settling.judge(update):  # the step again, as it is where gradients wait
                with checkpointing.replay(began, self.device):
                    losses, norm = self._pass(route, micro_batches, loss, rates, update)
                self.updates.decide(norm, update)
            if not self.policy.deferred:
                self.flush()
        if update:
            self.updates.finish(norm)
        self.traffic.settle()
        return torch.stack(losses), norm

    def _pass(
        self,
        route: Route,
        micro_batches: Sequence[Mapping[str, Tensor]],
        loss: Loss,
        rates: list[float],
        update: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Forward and backward, with the updates that fall into them. Returns losses and norm."""
        while len(self.shelves) < len(micro_batches):
            self.shelves.append({})
        values = [
            boundaries.Values(self.runner.given(batch), self.traffic, route.travellers, shelf)
            for batch, shelf in zip(micro_batches, self.shelves, strict=False)
        ]
        kept = self._forward(route, values)
        losses, pieces = self._backward(route, values, kept, loss, rates, update)
        return losses, self.updates.measure(self.exchange.norms_of_all(pieces[::-1]))

    def _forward(self, route: Route, values: list[boundaries.Values]) -> dict:
        """All units but the last, whose forward is the beginning of backward; each is first updated, where its update
        waits. Returns, by (unit, micro-batch), the graphs that are kept, and for units that draw random numbers and will
        run again, the state of the generators."""
        kept: dict = {}
        ahead = Ahead(range(len(self.units)), self.holdings, self.waiting)
        for k, unit in enumerate(self.units[:-1]):
            self.settling.catch_up(k)
            self.settling.begin(k + self.exchange.behind)  # its weights travel while this unit computes
            ahead.turn(k + self.exchange.behind)  # behind an update, whose gradient has made room
            self.holdings[k].use_weights()
            for i, store in enumerate(values):
                inputs = self._inputs(route, values, k, i, backward=False)
                if route.kept[k]:
                    kept[k, i], outputs = checkpointing.record(
                        self.runner.differentiable(k, route.light), unit.reads, unit.writes, inputs, route.wants[k]
                    )
                else:
                    if self.runner.draws[k]:
                        kept[k, i] = checkpointing.random_state(self.device)
                    outputs = self.runner.run(k, inputs)
                del inputs
                for name, value in zip(unit.writes, outputs, strict=True):
                    store.put(name, value)
                del outputs, value
                store.drop(route.done_forward[k])
                store.part(route.near(k, len(values), backward=False))
            self.holdings[k].leave(changed=False)
        return kept

    def _backward(
        self, route: Route, values: list[boundaries.Values], kept: dict, loss: Loss, rates: list[float], update: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """From the loss to the gradients, and where one pass suffices to the new weights. Returns losses and norms."""
        losses: list[Tensor] = []
        pieces: list[Tensor] = []
        cotangents: list[dict[str, Tensor]] = [{} for _ in values]
        update = self.updates.possible(update)
        early, at_once = self.settling.early, update and not self.policy.two_passes
        ahead = Ahead(route.backward, self.holdings, early=early, reach=self.policy.reach_mb << 20)
        arriving: deque[tuple[int, Gradients | None, Callable[[], None] | None]] = (
            deque()
        )  # sums over cards, on their way
        begin = Gradients.summed if max(len(values), self.team.size) > 1 else Gradients.gathered
        for position, k in enumerate(route.backward):
            unit, holding, learns = self.units[k], self.holdings[k], self._learns(k, rates)
            self.settling.catch_up(k)  # the last unit, whose forward is here
            holding.bring(state=learns and (at_once or k in early))  # a state has its own visit's length to arrive
            ahead.turn(position)
            holding.use_weights()
            grad = begin(holding, self.device) if learns else None
            reached = False
            for i, store in enumerate(values):
                record = kept.pop((k, i), None)
                if not isinstance(record, checkpointing.Record):
                    inputs = self._inputs(route, values, k, i, backward=True)
                    with checkpointing.replay(record, self.device):
                        record, outputs = checkpointing.record(
                            self.runner.differentiable(k), unit.reads, unit.writes, inputs, route.wants[k]
                        )
                    del inputs
                    if unit is self.units[-1]:
                        losses.append(self._turn(outputs[0], loss, i, cotangents[i]))
                    del outputs
                reached |= record.backward(cotangents[i])
                del record
                store.drop(route.done_backward[k])
                store.part(route.near(k, len(values), backward=True))
            if grad is not None:
                grad.close(holding)
            summed = self.exchange.gradient(holding, grad) if learns and reached else None
            arriving.append((k, grad, summed))
            del grad
            while len(arriving) > self.team.behind:
                self.settling.arrived(*arriving.popleft(), rates, update, pieces)
        while arriving:
            self.settling.arrived(*arriving.popleft(), rates, update, pieces)
        self.settling.arrive()
        return losses, pieces

    @property
    def waiting(self) -> Waiting:
        """Gradients of updates that are still to be made."""
        return self.settling.waiting

    def flush(self) -> None:
        """Make the updates that wait: whatever looks at weights or state, or runs the model, comes here first."""
        self.settling.flush()

    def _inputs(self, route: Route, values: list[boundaries.Values], k: int, i: int, backward: bool) -> list[Tensor]:
        """What unit k reads, while the next visit's reads are on their way."""
        inputs = values[i].take(self.units[k].reads)
        if i + 1 < len(values):
            values[i + 1].bring(self.units[k].reads)
        elif (following := route.next(k, backward)) is not None:
            values[0].bring(self.units[following].reads)
        return inputs

    def _turn(self, prediction: Tensor, loss: Loss, i: int, cotangents: dict[str, Tensor]) -> Tensor:
        """The turning point: from the prediction to the loss and to the prediction's cotangent."""
        with torch.enable_grad():
            prediction.requires_grad_()
            parts = loss(prediction, i)
            parts = parts if isinstance(parts, tuple) else (parts,)
            factor = self.updates.scale.factor
            parts[0].backward(None if factor is None else factor.to(parts[0].dtype))
        cotangents["prediction"] = prediction.grad
        return torch.stack([part.detach().float() for part in parts])

    # which units learn, and the way that backward takes then

    def _rate(self, unit: Unit, lr: float | Mapping[str, float]) -> float:
        return lr if isinstance(lr, (int, float)) else lr.get(unit.name.split(".")[0], 0.0)

    def _learns(self, k: int, rates: list[float]) -> bool:
        return self.holdings[k].n > 0 and rates[k] > 0

    def _route(self, rates: list[float]) -> Route:
        learns = tuple(self._learns(k, rates) for k in range(len(self.units)))
        if learns not in self.routes:
            self.routes[learns] = Route(self.units, self.policy, learns)
        if learns != self.learning:
            for holding, learning in zip(self.holdings, learns, strict=True):
                for place in holding.trained:
                    place.parameter.requires_grad_(learning)
            self.learning = learns
        return self.routes[learns]

    def _make_room(self) -> None:
        """For whoever computes between steps: with weights that are up to date, and without the memory of recordings."""
        self.flush()
        if self.replay is not None:
            self.replay.forget()

    def abandon(self) -> None:
        """Forget what a step that broke off has left in the engine's hands."""
        self.settling.abandon()
        for holding in self.holdings:
            holding.gradients = None
            for place in holding.trained:
                place.parameter.grad = None

    # seen from outside

    def forward(self, values: Mapping[str, Tensor], wanted: str = "prediction") -> Tensor:
        """A value computed from `values` without gradients, with streamed weights too; units that are not needed for it
        (text encoders, when `text` is given) do not run."""
        self._make_room()
        return self.runner.value(wanted, values, self.holdings)

    def master(self, frozen: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 value) of every trained parameter, one unit's worth of memory at a time; `frozen`: the others too.
        Where ranks share the state, the first asks and the others `help`: so with everything that looks at all of it."""
        self.flush()
        for k, holding in enumerate(self.holdings):
            yield from holding.master(frozen, partial(self.exchange.whole, "correction", k))

    def slices(self) -> Iterator[tuple[str, Tensor]]:
        """(unit, this rank's slice of its weights in fp32): all of them, or where ranks share the state its part."""
        self.flush()
        return outside.slices(self.units, self.holdings)

    def load_master(self, values: Mapping[str, Tensor]) -> None:
        """Replace the trained weights (and corrections); the moments stay."""
        self.flush()
        for holding in self.holdings:
            holding.set_master(values)

    def state_dict(self) -> Asked:
        """Everything an exact resume needs: trained weights, corrections and moments by unit as they are stored, and the
        counters. Independent of where they live, so a run may resume with another residency, or on other ranks."""
        self.flush()
        counters = self.updates.state_dict() | {outside.LAYOUT: torch.tensor(int(self.policy.channels_last))}
        return outside.stored(self.units, self.holdings, self.exchange).beside(counters)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse. Raises ConfigError where the checkpoint's formats are not this run's."""
        outside.restore(self.state_dict(), self.units, self.holdings, state)
        self.updates.load_state_dict(state, self.holdings)

    @property
    def bytes(self) -> dict[str, int]:
        """Counted bytes: weights and state on the card, and everything in host memory."""
        return outside.counted(self.holdings, (self.waiting.shelf, *self.shelves))

    @contextmanager
    def parked(self):
        """Optimizer state in host memory for the length of the block, so that sampling has the card to itself."""
        self._make_room()
        with outside.parked(self.holdings):
            yield self

    def as_module(self, denoiser: nn.Module, family: Speaks) -> nn.Module:
        """A stand-in for `denoiser`, which is of `family`, in a diffusers pipeline; it also works when the weights are
        streamed."""
        return StandIn(self, denoiser, family)
