"""Where a unit's bytes live: its weights and its optimizer state as two blocks, on the card or visiting it.

All trained parameters of a unit become views into one flat buffer, so that one kernel updates them and one copy moves
them; frozen ones (under LoRA) lie behind them in the same block. A parameter's `data` always points at real bytes: at
the card's copy while the unit visits, at the host's copy else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.files.mapped import forget
from trainer.kernels.adamw_lowbit import ALIGN, State, block_bytes, layout, views
from trainer.machine import host
from trainer.memory.anchor import Anchor, Desk
from trainer.memory.stream import Block, Traffic
from trainer.policy import Policy
from trainer.step.ranks.share import Runs, Share
from trainer.units import Unit, new


@dataclass(frozen=True)
class Place:
    """One parameter inside a flat buffer; `stride` keeps its memory format."""

    name: str
    parameter: nn.Parameter
    start: int
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        return torch.as_strided(flat, self.shape, self.stride, flat.storage_offset() + self.start)

    def fill(self, flat: Tensor, value: Tensor) -> None:
        self.view(flat).copy_(value)


def _places(named: list[tuple[str, nn.Parameter]], channels_last: bool) -> tuple[list[Place], int]:
    """Where each parameter will lie. Convolutions change to channels last on the way: no copy in RAM beforehand."""
    places, end = [], 0
    for name, parameter in named:
        like = torch.empty_strided(parameter.shape, parameter.stride(), device="meta")
        last = parameter.dim() == 4 and (channels_last or like.is_contiguous(memory_format=torch.channels_last))
        stride = like.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).stride()
        places.append(Place(name, parameter, end, parameter.shape, stride))
        end += -(-parameter.numel() // ALIGN) * ALIGN
    return places, end


class Holding:
    """The bytes of one unit. `trained` decides what learns: the parameters that require gradients when it is made.

    n: numbers that are trained, in one row; form: of weights and state of the whole row, as a checkpoint has them; share: the
    slice of it whose state is here.
    """

    def __init__(
        self,
        unit: Unit,
        policy: Policy,
        traffic: Traffic,
        share: Callable[[int], Share] = Share.of,
        *,
        weights_stay: bool,
        state_stays: bool,
    ):
        named = list(unit.module.named_parameters())
        trained, frozen = ([(name, p) for name, p in named if p.requires_grad is learns] for learns in (True, False))
        self.trained, self.n = _places(trained, policy.channels_last)
        self.frozen, self.n_frozen = _places(frozen, policy.channels_last)
        ends = [*(place.start for place in self.trained[1:]), self.n]
        self.gaps = [  # between parameters, which start at multiples of ALIGN
            (stop, end)
            for place, end in zip(self.trained, ends, strict=False)
            if (stop := place.start + place.shape.numel()) < end
        ]
        self.share = share(self.n)
        extents = [(place.start, place.start + place.shape.numel()) for place in self.trained]
        self.runs = Runs(extents, self.n, self.share)
        self.gradients: Any = None  # who gathers them now (gradients.py)
        self.anchor: Anchor | None = None
        self.policy, self.traffic = policy, traffic
        self.form, tensors = (self._layout(count) for count in (self.n, self.share.count))
        tensors |= {"weight": self._layout(self.share.whole)["weight"]}
        self.tensors = tensors
        self.state_names = tuple(name for name in tensors if name != "weight")
        self.weight_tensors = {"weight": tensors["weight"], "frozen": ((self.n_frozen,), policy.math)}
        self.weights = Block.make(block_bytes(self.weight_tensors, self.weight_tensors), weights_stay, traffic)
        self.state = Block.make(block_bytes(tensors, self.state_names), state_stays, traffic)
        self._take_over(unit)

    def _layout(self, n: int) -> dict[str, tuple[tuple[int], torch.dtype]]:
        policy = self.policy
        tensors = layout(n, policy.weights, policy.moments, policy.weight_dtype)
        # a torch optimizer keeps its own state
        return tensors if policy.optimizer == "adamw" else {"weight": tensors["weight"]}

    def _take_over(self, unit: Unit) -> None:
        """Copy the module's weights into the blocks and point its parameters there, which lets go of what they were."""
        parts = self.weight_views(self.weights.home)
        if self.weights.home.device.type != "meta":
            master = torch.zeros(self.share.whole, dtype=torch.float32, device=parts["weight"].device)
            for place in self.trained:
                place.fill(master, place.parameter.detach())
                forget(place.parameter)
            self._state_over(self.weights.home, self.state.home).initialise(self.share.of_row(master))
            self._round(master)
            parts["frozen"].zero_()
            for place in self.frozen:
                place.fill(parts["frozen"], place.parameter.detach())
                forget(place.parameter)
        self.point(self.weights.home)
        for buffer_owner in unit.module.modules():
            for name, buffer in buffer_owner._buffers.items():
                if buffer is not None:
                    buffer_owner._buffers[name] = buffer.to(self.traffic.device)

    def weight_views(self, block: Tensor) -> dict[str, Tensor]:
        return views(block, self.weight_tensors, self.weight_tensors)

    def _state_over(self, weights: Tensor, state: Tensor) -> State:
        row = self.weight_views(weights)["weight"]
        tensors = {"weight": self.share.of_row(row)} | views(state, self.tensors, self.state_names)
        moments = self.policy.moments if self.state_names else "fp32"
        return State(self.share.count, self.policy.weights, moments, row.dtype, tensors, self.share.first)

    def _round(self, master: Tensor) -> None:
        """The weights that the model reads from fp32 ones, also those whose state others have."""
        row = self.weight_views(self.weights.read())["weight"]
        if self.share.count < len(row):
            tensors = {"weight": row}
            if self.policy.weights == "24bit":
                tensors["correction"] = torch.empty(len(row), dtype=torch.int8, device=row.device)
            State(len(row), self.policy.weights, "fp32", row.dtype, tensors).set_master(master)

    def point(self, block: Tensor) -> None:
        """Let the parameters' data lie in `block`."""
        parts = self.weight_views(block)
        for place in self.trained:
            place.parameter.data = place.view(parts["weight"])
        for place in self.frozen:
            place.parameter.data = place.view(parts["frozen"])

    def bring(self, weights: bool = True, state: bool = False) -> None:
        """Start bringing what is away."""
        if weights:
            self.weights.bring()
        if state and self.n:
            self.state.bring()
            if self.anchor is not None:
                self.anchor.bring()

    def away(self, state: bool) -> int:
        """Bytes that `bring` would bring at most."""
        blocks = (self.weights, self.state) if state else (self.weights,)
        base = self.anchor.nbytes if state and self.anchor is not None and not self.anchor.stays else 0
        return base + sum(block.home.nbytes for block in blocks if not block.resident)

    def use_weights(self) -> None:
        """The parameters are on the card after this."""
        if not self.weights.resident:
            self.point(self.weights.use())

    def use_state(self) -> State:
        return self._state_over(self.weights.use(), self.state.use())

    def use_anchor(self) -> Tensor | None:
        """The base model's weights, fp16, of this rank's slice, where these are held to them."""
        return None if self.anchor is None else self.anchor.use()

    def row(self) -> Tensor:
        """The trained weights on the card, all of the row."""
        return self.weight_views(self.weights.use())["weight"]

    def updated(self) -> None:
        """The state goes home and the new weights as well, but these stay for the forward that follows."""
        self.state.leave(changed=True)
        self.weights.save()
        if self.anchor is not None:
            self.anchor.leave()

    @property
    def may_be_early(self) -> bool:
        """Whether what an update changes can be kept beside it: a state that has a home in host memory."""
        return self.n > 0 and not self.n_frozen and not self.state.resident

    def lend(self, grad: Tensor) -> Tensor | None:
        """Host memory for a gradient that waits: that of early updates, where there are any. It holds something only until they
        are accepted or taken back."""
        return self.weights.lend(grad.nbytes) if self.policy.early_updates and self.may_be_early else None

    def updated_early(self) -> None:
        """As `updated`, but until `accept` what was before is kept beside it."""
        self.state.save(aside=True)
        self.weights.save(aside=True)

    def accept(self) -> None:
        """An early update holds."""
        self.state.accept()
        self.weights.accept()
        if not self.weights.resident:
            self.point(self.weights.home)

    def take_back(self) -> None:
        """An early update was never made."""
        self.state.take_back()
        self.weights.take_back()

    def leave(self, changed: bool) -> None:
        """Send home what does not stay."""
        if not self.weights.resident:
            self.point(self.weights.home)
        self.weights.leave(changed and self.n > 0)
        self.state.leave(changed)
        if self.anchor is not None:
            self.anchor.leave()

    def park(self) -> None:
        """Move a resident state to the host until `unpark`."""
        if self.state.resident:
            self.state.move(host.empty(self.state.home.shape, torch.uint8, self.traffic.device))
        if self.anchor is not None:
            self.anchor.park()

    def unpark(self) -> None:
        if self.state.resident:
            self.state.move(torch.empty_like(self.state.home, device=self.traffic.device))
        if self.anchor is not None:
            self.anchor.unpark()

    def at_home(self) -> State:
        """The state of this rank's slice, for a look from outside a step."""
        return self._state_over(self.weights.read(), self.state.read())

    def take(self, name: str, tensor: Tensor) -> None:
        """Replace `name`, which `tensor` is for the whole row, by it: of the weights all, of the state this rank's slice."""
        if name == "weight":
            self.weight_views(self.weights.read())["weight"][: self.n].copy_(tensor)
            return
        ends = self.share.first, self.share.first + self.share.count
        first, last = (min(number, self.n) * len(tensor) // self.n for number in ends)
        self.at_home().tensors[name][: last - first].copy_(tensor[first:last])

    def master(
        self, frozen: bool = False, correction: Callable[[], Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 value) of every trained parameter, and of the frozen ones if asked. `correction`: how that of the whole
        row is had, where this rank has a slice."""
        if self.n:
            row = self.weight_views(self.weights.read())["weight"][: self.n]
            tensors = {"weight": row}
            if "correction" in self.form:
                here = self.at_home().tensors["correction"] if correction is None else correction()
                tensors["correction"] = here[: self.n].to(row.device)
            full = State(self.n, self.policy.weights, "fp32", row.dtype, tensors).master()
            yield from self.parameters(full)
        if frozen:
            stored = self.weight_views(self.weights.read())["frozen"]
            for place in self.frozen:
                yield place.name, place.view(stored).float().contiguous()

    def parameters(self, full: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each trained parameter by name, from numbers for the whole row."""
        for place in self.trained:
            yield place.name, place.view(full).contiguous()

    def fp32(self, values: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """The inverse: the whole row, with zeros between parameters and behind them."""
        full = torch.zeros(self.share.whole, dtype=torch.float32, device=device)
        for place in self.trained:
            place.fill(full, values[place.name])
        return full

    def set_master(self, values: Mapping[str, Tensor]) -> None:
        """New values for the trained parameters; moments stay."""
        state = self.at_home()
        full = self.fp32(values, state.tensors["weight"].device)
        state.set_master(self.share.of_row(full))
        self._round(full)


def hold(
    units: list[Unit], policy: Policy, traffic: Traffic, share: Callable[[int], Share] = Share.of
) -> list[Holding]:
    """The units' bytes, each where the policy wants them."""
    stay = _staying(units, policy.resident_units if policy.stream != "off" else len(units))
    anchored = policy.hyper.anchor > 0
    loaded = [{name: p.detach() for name, p in unit.module.named_parameters()} for unit in units if anchored]
    found = [
        Holding(
            unit,
            policy,
            traffic,
            share,
            weights_stay=policy.stream != "all" or k in stay,
            state_stays=policy.stream == "off" or k in stay,
        )
        for k, unit in enumerate(units)
    ]
    if anchored:
        desk = None if policy.anchor_stays else Desk(max(holding.share.count for holding in found), traffic)
        for unit, holding, base in zip(units, found, loaded, strict=True):
            if holding.n and not new(unit.module):
                holding.anchor = Anchor(
                    partial(_gather, holding.trained, holding.share, base), holding.share.count, traffic, desk
                )
    return found


def _gather(places: list[Place], share: Share, base: dict[str, Tensor], mine: Tensor) -> None:
    """The base model's parameters to their places, or of them what is in this rank's slice; their pages go back to the file."""
    flat = mine if share.count == share.whole else mine.new_empty(share.whole)
    flat.zero_()
    for place in places:
        place.fill(flat, base[place.name])
        forget(base[place.name])
    if flat is not mine:
        mine.copy_(share.of_row(flat))


def _staying(units: list[Unit], count: int) -> set[int]:
    """The `count` largest units: what stays shrinks the window as well."""
    sizes = [sum(p.numel() for p in unit.module.parameters()) for unit in units]
    return set(sorted(range(len(units)), key=lambda k: -sizes[k])[:count])
