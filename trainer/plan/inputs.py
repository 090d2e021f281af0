"""The machine that a plan is made for, and the budget on it.

These are the only functions of the planner that look at the world; everything behind them is pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from trainer.plan import calibration, cards
from trainer.settings.config import Config


@dataclass(frozen=True)
class Machine:
    """What a plan is made for. card: named, or found; None where its rates are unknown. Bytes: None where nobody knows."""

    kind: str = "cuda"  # or "cpu"
    card: cards.Card | None = None
    free_vram_bytes: int | None = None
    free_ram_bytes: int | None = None


def at_hand(config: Config, device: torch.device) -> Machine:
    """The machine at hand, or the card that --card names."""
    card = cards.find(config.run.card) if config.run.card else None
    ram = psutil.virtual_memory().available
    if device.type != "cuda":
        return Machine("cpu", None, None, ram)
    if not torch.cuda.is_available():  # planning for a card that is not here
        return Machine("cuda", card, None, None)
    free, _ = torch.cuda.mem_get_info(device if device.index is not None else 0)
    mine = int(calibration.CONTEXT_BYTES.amount) + torch.cuda.memory_reserved()  # what this very process holds already
    return Machine("cuda", card or cards.match(torch.cuda.get_device_name(device)), free + mine, ram)


def budget_bytes(config: Config, machine: Machine) -> int | None:
    """--vram_gb (presets set it), else what the card has free, else the named card's memory less a headroom."""
    if machine.kind != "cuda":
        return None
    if config.memory.vram_gb is not None:
        return int(config.memory.vram_gb * calibration.GIB)
    if machine.free_vram_bytes is not None:
        return machine.free_vram_bytes
    return int(machine.card.vram_gb * 0.93 * calibration.GIB) if machine.card else None
