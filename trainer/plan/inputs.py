"""The machine that a plan is made for, and the budget on it.

These are the only functions of the planner that look at the world; everything behind them is pure. What a card can do is
what it says of itself, never what its name promises: a name is asked only where no card is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from trainer.errors import ConfigError
from trainer.kernels import choice
from trainer.machine import convolutions, vitals
from trainer.models import Facts
from trainer.plan import calibration, cards, solver
from trainer.plan.calibration import ASSUMED, Constants, gib
from trainer.plan.here import learned
from trainer.settings.config import Config


@dataclass(frozen=True)
class Machine:
    """What a plan is made for. card: named, or found; None where its rates are unknown. Bytes: None where nobody knows.
    Of the card that is here - capability: its own word for what it can; no_kernels: why Triton builds none for it, empty where
    it does; convolutions: how those in fp16 come out right, where fp16 is what it would compute in; constants: as measured."""

    kind: str = "cuda"  # or "cpu"
    card: cards.Card | None = None
    free_vram_bytes: int | None = None
    free_ram_bytes: int | None = None
    total_vram_bytes: int | None = None
    capability: tuple[int, int] | None = None
    no_kernels: str = ""
    convolutions: convolutions.Way = "plain"
    constants: Constants = ASSUMED
    unmeasured: str = ""  # why the card that is here could not be measured

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16: by capability where a card is here, and by a named card as well. Without either it
        is assumed."""
        able = self.capability is None or self.capability >= cards.BF16
        return able and (self.card is None or self.card.bf16)

    @property
    def computes(self) -> torch.dtype:
        """What it computes in where nobody chose."""
        if self.kind == "cpu" or self.convolutions == "none":
            return torch.float32
        return torch.bfloat16 if self.bf16 else torch.float16


def at_hand(config: Config, device: torch.device, facts: Facts | None = None) -> Machine:
    """The machine at hand, or the card that --card names. `facts`: of the model, whose shapes are tried on a card that would
    compute in fp16. Raises ConfigError where that was asked for and gives no numbers."""
    card = cards.find(config.run.card) if config.run.card else None
    ram = psutil.virtual_memory().available
    if device.type != "cuda":
        return Machine("cpu", None, None, ram)
    if not torch.cuda.is_available():  # planning for a card that is not here
        return Machine("cuda", card, None, None)
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    # what this very process holds already, as far as the driver says it
    own = vitals.own_bytes(torch.device("cuda", index))
    mine = int(calibration.CONTEXT_BYTES.amount) + torch.cuda.memory_reserved(index) if own is None else own
    found = look(index)
    card = card or cards.match(found.name) or cards.estimated(found)
    made = Machine("cuda", card, min(free + mine, total), ram, total, found.capability, choice.trial(index))
    if facts is None:
        return made
    made = _convolving(config, facts, made, found.name, torch.device("cuda", index))
    return made if config.run.card else _learned(config, facts, made, torch.device("cuda", index), own is not None)


def _convolving(config: Config, facts: Facts, made: Machine, name: str, device: torch.device) -> Machine:
    """With the way in which convolutions in fp16 come out right, where fp16 is what the run would compute in."""
    asked = config.train.mixed_precision
    if asked in ("no", "bf16") or (made.bf16 and asked != "fp16"):
        return made
    way = convolutions.trial([*learned.convolved(config, facts)], device)
    if way == "none" and asked == "fp16":
        raise ConfigError(
            f"Convolutions on this {name} give no numbers in fp16 (NaN), whatever algorithm cuDNN takes.",
            "Leave out --mixed_precision: the run then computes in fp32. A newer driver and torch may help.",
        )
    return replace(made, convolutions=way)


def _learned(config: Config, facts: Facts, made: Machine, device: torch.device, told: bool) -> Machine:
    """With what the card says of itself when it is tried; with assumptions where that does not come off. told: whether the
    driver said what this process holds already."""
    computes = solver.base(config, made.kind, made.computes).math
    try:
        known = learned.learn(config, facts, device, computes)
    except (
        ConfigError,
        *choice.FAILURES,
    ) as refusal:  # whatever a small step may break off with; a run is still planned
        return replace(made, unmeasured=choice.first_line(refusal))
    # of what this process holds already, where that was assumed
    more = 0 if told else int(known.context.amount) - int(ASSUMED.context.amount)
    assert made.free_vram_bytes is not None and made.total_vram_bytes is not None, "the card is here"
    return replace(made, constants=known, free_vram_bytes=min(made.free_vram_bytes + more, made.total_vram_bytes))


def smallest(machines: Sequence[Machine]) -> Machine:
    """The machine that several cards are planned for, one that each of them is at least: all of them follow one plan. They
    share the RAM of theirs."""
    least = min(machines, key=lambda machine: machine.free_vram_bytes or 0)
    slowest = min((m.card for m in machines if m.card), key=lambda card: card.tflops, default=None)
    ways = ("none", "benchmark", "plain")  # of convolutions, worst first
    return replace(
        least,
        card=slowest,
        free_ram_bytes=None if least.free_ram_bytes is None else least.free_ram_bytes // len(machines),
        capability=min((m.capability for m in machines if m.capability), default=None),
        no_kernels=next((m.no_kernels for m in machines if m.no_kernels), ""),
        convolutions=min((m.convolutions for m in machines), key=ways.index),
        constants=calibration.worse([m.constants for m in machines]),
        unmeasured=next((m.unmeasured for m in machines if m.unmeasured), ""),
    )


def unlike(machines: Sequence[Machine]) -> str:
    """What is to be said where cards differ; empty where they do not."""
    sizes = [f"{m.card.name}, {gib(m.total_vram_bytes)}" for m in machines if m.card and m.total_vram_bytes]
    if len({*sizes}) < 2:
        return ""
    return (
        f"The cards differ ({'; '.join(sizes)}). The plan is made for the smallest, which each of the others follows, and a "
        "step takes as long as the slowest needs."
    )


def look(index: int) -> cards.Device:
    """What the driver says of a card. How fast its clocks are, not every version of torch passes on."""
    said = torch.cuda.get_device_properties(index)
    memory_hertz, bits = getattr(said, "memory_clock_rate", 0) * 1e3, getattr(said, "memory_bus_width", 0)
    return cards.Device(
        said.name,
        (said.major, said.minor),
        said.multi_processor_count,
        said.total_memory,
        clock_mhz=getattr(said, "clock_rate", 0) / 1e3,
        bandwidth=2 * memory_hertz * bits / 8 / 1e9,
    )


def budget_bytes(config: Config, machine: Machine) -> int | None:
    """--vram_gb (presets set it), but no more than the card has free, less a margin; without either the named card's
    memory less a headroom."""
    if machine.kind != "cuda":
        return None
    limits = []
    if config.memory.vram_gb is not None:
        limits.append(int(config.memory.vram_gb * calibration.GIB))
    if machine.free_vram_bytes is not None:
        limits.append(machine.free_vram_bytes - int(calibration.MARGIN_BYTES.amount))
    if not limits and machine.card is not None:
        limits.append(int(machine.card.vram_gb * 0.93 * calibration.GIB))
    return min(limits, default=None)


def assumptions(config: Config, machine: Machine, computes: torch.dtype) -> tuple[str, ...]:
    """What a reader of the plan must know that its numbers don't say, a sentence each."""
    found = []
    if machine.kind == "cuda" and machine.capability is None and not config.run.card and computes == torch.bfloat16:
        found.append(
            "No card is here, so one that computes in bf16 is assumed (RTX 30 and newer); older ones compute in fp16. "
            "Name yours with --card 'RTX 2070'."
        )
    named = machine.card if machine.capability is None else None
    if named is not None and "no tensor cores" in named.source and computes == torch.float16:
        found.append(f"Convolutions in fp16 give no numbers on some cards of the kind of the {named.name}. They are tried before "
                     "training: where that is so the run computes in fp32, in more memory than is planned here.")  # fmt: skip
    if machine.convolutions == "benchmark":
        found.append("Convolutions in fp16 gave no numbers with cuDNN's first choice on this card. They are right in its "
                     "benchmark mode, which is on.")  # fmt: skip
    if machine.convolutions == "none":
        found.append("Convolutions in fp16 give no numbers on this card, whatever algorithm cuDNN takes, so it computes in fp32: "
                     "more slowly and in more memory.")  # fmt: skip
    free, asked = machine.free_vram_bytes, config.memory.vram_gb
    budget = budget_bytes(config, machine)
    if free is not None and asked is not None and budget is not None and budget < int(asked * calibration.GIB):
        total = machine.total_vram_bytes
        of = (
            "" if total is None else f" of {gib(total)}: other programs and the screen hold {gib(max(total - free, 0))}"
        )
        found.append(
            f"Planned for {gib(budget)} instead of {asked:g} GiB, because only {gib(free)} are free on the card{of}."
        )
    if known := machine.constants.said(here=True):
        others = ", ".join(machine.constants.said(here=False))
        found.append(f"Measured on this card ({machine.constants.date}): {', '.join(known)}. Assumed: {others}.")
    if machine.constants.searches and not config.data.buckets:
        found.append("cuDNN searches for its fastest algorithms for the convolutions of a step, which pays on this card and takes "
                     "no more than the workspaces that are planned.")  # fmt: skip
    if machine.unmeasured:
        found.append(f"What context, bus and arithmetic take is assumed: {machine.unmeasured.rstrip('.')}.")
    if machine.card is not None and machine.constants.flops is None and machine.card.source.startswith("estimated"):
        found.append(f"The speed of {machine.card.name} is {machine.card.source}.")
    return tuple(found)
