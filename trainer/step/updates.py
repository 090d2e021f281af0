"""From gradients to new weights: norm, clip factor, overflow flag and one optimizer call for each unit.

    norm = |g| / scale        clip = min(1, max_norm / (norm + 1e-6)) / scale        skip = norm is not finite (fp16)

Everything a step decides stays on the device as 0-d tensors that the kernel reads, so the host never waits: the clip
factor, the overflow flag, and the loss scale, which halves after an overflow and doubles after 2000 steps without one,
as torch's GradScaler does. (Unlike there, a skipped step counts in Adam's bias correction: its number is the host's.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.kernels.adamw_lowbit import scalars, step_
from trainer.policy import Policy
from trainer.step import optim
from trainer.step.residency import Holding, Place

GROWTH_INTERVAL = 2000
FIRST_SCALE = 2.0**16


class Scale:
    """The loss scale. Without fp16 it is absent (None) and costs nothing."""

    def __init__(self, policy: Policy, device: torch.device):
        self.factor = self.calm = None
        if policy.math == torch.float16:
            self.factor = torch.full((), FIRST_SCALE, device=device)
            self.calm = torch.zeros((), device=device)  # steps since the last change

    def adapt(self, overflow: Tensor) -> None:
        calm = torch.where(overflow, 0.0, self.calm + 1)
        grown = calm >= GROWTH_INTERVAL
        self.factor.copy_(torch.where(overflow, self.factor * 0.5, torch.where(grown, self.factor * 2, self.factor)))
        self.calm.copy_(torch.where(grown, 0.0, calm))


def _row(place: Place, flat: Tensor) -> Tensor:
    """A parameter's numbers in the order in which they lie, whatever its memory format."""
    return flat[place.start : place.start + place.shape.numel()]


@dataclass(frozen=True)
class Decision:
    """What a step decides for all its updates, also for those that are made later. number: of the step, as Adam counts;
    skip: None where a unit's own gradients say it (one pass, fp16)."""

    number: int
    clip: Tensor | None
    skip: Tensor | None


class Updates:
    """The optimizer's side of a step."""

    def __init__(self, policy: Policy, device: torch.device):
        self.policy, self.device = policy, device
        self.scale = Scale(policy, device)
        self.taken = 0  # optimizer steps
        self.norm = torch.full((), float("nan"), device=device)  # of the last step, unscaled; always this tensor
        self.decision = Decision(1, None, None)
        # of each unit's update, on the card, where a recorded step reads them
        self.numbers = torch.empty(0, 6, dtype=torch.int32, device=device)
        self.telling = False  # whether a step is being recorded
        self.optimizers: dict[int, torch.optim.Optimizer] = {}  # by unit; those that are not ours
        self.together: dict[int, float] = {}  # units that wait for a step of the whole model, with their rates

    def possible(self, update: bool) -> bool:
        """Whether gradients are kept and applied: our optimizer does all that a step does under a flag that changes nothing."""
        return update or self.policy.optimizer == optim.OURS

    def start(self, update: bool, rates: Sequence[float]) -> None:
        """Before backward. By the previous norm the clip factor is known already; in the first step it is 1, which is
        harmless because Adam's first update is the same for gradients of every size.

        rates: of the units.
        """
        if update and not self.telling:
            self.count(rates)
        if self.policy.two_passes:
            return
        clip = self._inverse()
        if self.policy.max_grad_norm > 0:
            clip = self._clip(torch.where(torch.isfinite(self.norm), self.norm, 0.0))
        self.decision = Decision(max(self.taken, 1), clip, self._nothing(update))

    def measure(self, pieces: list[Tensor]) -> Tensor:
        """After backward: the global norm from all units' norms, in the order of the units."""
        norm = torch.linalg.vector_norm(torch.cat(pieces)) if pieces else torch.zeros((), device=self.device)
        return norm if self.scale.factor is None else norm / self.scale.factor

    def decide(self, norm: Tensor, update: bool) -> None:
        """After backward, where all gradients waited: the clip factor and the overflow flag of their updates."""
        self.decision = self._decided(
            self._clip(norm) if self.policy.max_grad_norm > 0 else self._inverse(), norm, update
        )

    def foresee(self, update: bool) -> Decision:
        """What `decide` will say of a step in which nothing is clipped."""
        norm, inverse = torch.zeros((), device=self.device), self._inverse()
        return self._decided(torch.ones_like(norm) if inverse is None else inverse, norm, update)

    def came_true(self, foreseen: Decision) -> bool:
        """Whether the updates that were made by `foreseen` are those of the step's decision, to the bit. The host waits."""
        pairs = (self.decision.clip, foreseen.clip), (self.decision.skip, foreseen.skip)
        return bool(torch.stack([decided == other for decided, other in pairs if decided is not None]).all())

    def _decided(self, clip: Tensor | None, norm: Tensor, update: bool) -> Decision:
        skip = self._nothing(update)
        if self.scale.factor is not None and skip is None:
            skip = ~torch.isfinite(norm)
        return Decision(max(self.taken, 1), clip, skip)

    def finish(self, norm: Tensor) -> None:
        self.norm.copy_(norm)
        if self.scale.factor is not None:
            self.scale.adapt(~torch.isfinite(norm))

    def _clip(self, norm: Tensor) -> Tensor:
        clip = (self.policy.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        inverse = self._inverse()
        return clip if inverse is None else clip * inverse

    def _nothing(self, update: bool) -> Tensor | None:
        return None if update else torch.ones((), device=self.device)

    def _inverse(self) -> Tensor | None:
        return None if self.scale.factor is None else 1.0 / self.scale.factor

    def apply(
        self,
        index: int,
        holding: Holding,
        grad: Tensor,
        lr: float,
        norm: Tensor | None = None,
        decided: Decision | None = None,
    ) -> None:
        """Update one unit. `norm`: its parameters' norms, where the flag must come from this unit alone (one pass, fp16).
        `decided`: where that is not the step's own decision."""
        if self.policy.optimizer != optim.OURS:
            self._step_theirs(index, holding, grad, lr)
            return
        decided = decided or self.decision
        skip = decided.skip
        if skip is None and self.scale.factor is not None:
            skip = ~torch.isfinite(norm.sum())
        hyper = self.policy.hyper
        step_(
            holding.use_state(), grad, lr=lr, beta1=hyper.betas[0], beta2=hyper.betas[1], eps=hyper.eps,
            weight_decay=hyper.weight_decay, step=decided.number, clip_scale=decided.clip, skip=skip,
            seed=self._seed(index), numbers=self.numbers[index] if self.telling else None,
            origin=holding.use_anchor(), share=lr * hyper.anchor,
        )  # fmt: skip

    def _seed(self, index: int) -> int:
        return self.policy.seed * 100003 + index

    # a step that is recorded and replayed (replay.py): the host counts, and tells the card

    @contextmanager
    def told(self, rates: Sequence[float]) -> Iterator[None]:
        """Inside, updates read their numbers from the card, and nothing is counted: the step is not taken."""
        self.tell(rates)
        self.telling = True
        try:
            yield
        finally:
            self.telling = False

    def count(self, rates: Sequence[float]) -> None:
        """A step is taken, if anything has a rate. A step of warm-up at rate 0 leaves the moments empty, and Adam's correction,
        which makes up for how empty they are, would take them for fuller: the next step would move 0.744 of its rate."""
        self.taken += max(rates, default=0.0) > 0

    def tell(self, rates: Sequence[float]) -> None:
        """Put what the coming step's updates need where a recording reads it: (units, 6) int32 on the device. A unit without
        a rate is not updated, whatever its numbers."""
        hyper, number = self.policy.hyper, max(self.taken, 1)
        rows = [
            scalars(rate, *hyper.betas, hyper.weight_decay, number, self._seed(index), rate * hyper.anchor)
            for index, rate in enumerate(rates)
        ]
        told = torch.tensor(rows, dtype=torch.int32)
        if len(self.numbers) != len(told):
            self.numbers = torch.empty_like(told, device=self.device)
        self.numbers.copy_(told.pin_memory() if self.device.type == "cuda" else told, non_blocking=True)

    def _step_theirs(self, index: int, holding: Holding, grad: Tensor, lr: float) -> None:
        if self.decision.clip is not None:
            grad.mul_(self.decision.clip)
        if self.policy.optimizer in optim.NEEDS_ALL:
            for place in holding.trained:
                place.parameter.grad = place.view(grad)
            self.together[index] = lr  # for `step_together`, when all gradients hang on their parameters
            return
        optimizer = self.theirs(index, holding, lr)
        group = optimizer.param_groups[0]
        group["lr"] = lr
        for place, parameter in zip(holding.trained, group["params"], strict=True):
            parameter.grad = _row(place, grad) if self.policy.optimizer in optim.IN_A_ROW else place.view(grad)
        optimizer.step()
        for parameter in group["params"]:
            parameter.grad = None

    def theirs(self, index: int, holding: Holding, lr: float = 0.0) -> torch.optim.Optimizer:
        """The torch optimizer of one unit. Its weights stay on the card, so a row of them stays one."""
        if index not in self.optimizers:
            parameters = [place.parameter for place in holding.trained]
            if self.policy.optimizer in optim.IN_A_ROW:
                flat = holding.weight_views(holding.weights.home)["weight"]
                parameters = [nn.Parameter(_row(place, flat)) for place in holding.trained]
            groups = [{"params": parameters, "lr": lr}]
            self.optimizers[index] = optim.make(self.policy.optimizer, groups, self.policy.hyper)
        return self.optimizers[index]

    def whole(self, holdings: list[Holding]) -> torch.optim.Optimizer:
        """The one torch optimizer over all units, for those that need all gradients at once."""
        if -1 not in self.optimizers:
            groups = [{"params": [place.parameter for h in holdings for place in h.trained], "lr": 1.0}]
            self.optimizers[-1] = optim.make(self.policy.optimizer, groups, self.policy.hyper)
        return self.optimizers[-1]

    def step_together(self, holdings: list[Holding]) -> None:
        rates = set(self.together.values())
        if len(rates) > 1:
            raise ConfigError(
                f"train.optimizer = {self.policy.optimizer!r} estimates one step size, but there are several learning rates.",
                "Give --text_encoder_lr the value of --learning_rate, or use --optimizer adamw.",
            )
        if rates:
            optimizer = self.whole(holdings)
            optimizer.param_groups[0]["lr"] = rates.pop()
            optimizer.step()
            for index in self.together:
                for place in holdings[index].trained:
                    place.parameter.grad = None
            self.together.clear()

    def state_dict(self) -> dict[str, Tensor]:
        state = {"engine.taken": torch.tensor(self.taken), "engine.norm": self.norm}
        if self.scale.factor is not None:
            state |= {"engine.scale": self.scale.factor, "engine.calm": self.scale.calm}
        for index, optimizer in self.optimizers.items():
            state |= {f"optimizer.{index}.{name}": tensor for name, tensor in optim.export_state(optimizer).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], holdings: list[Holding]) -> None:
        self.taken = int(state["engine.taken"])
        self.norm.copy_(state["engine.norm"])
        if self.scale.factor is not None:
            self.scale.factor.copy_(state["engine.scale"])
            self.scale.calm.copy_(state["engine.calm"])
        theirs: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, rest = name.split(".", 2)
                theirs.setdefault(int(index), {})[rest] = tensor
        for index, entries in theirs.items():
            optimizer = self.whole(holdings) if index == -1 else self.theirs(index, holdings[index])
            optim.import_state(optimizer, entries)
