"""Published rates of graphics cards, and how long counted work would take there: a roofline, never a measurement.

    seconds = max(flops / (rate * efficiency) + bytes / (bandwidth * efficiency), operators * launch) + what copies cannot hide

A rate is tensor cores * FMAs a clock * 2 * boost clock, from the makers' architecture papers (Turing TU102/TU106, Ampere
GA102, Ada AD102, Blackwell GB202); GeForce halves it where fp16 or bf16 products are summed in fp32, as training needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trainer.errors import ConfigError
from trainer.plan import calibration, timeline
from trainer.plan.simulate import Watched


@dataclass(frozen=True)
class Card:
    """tflops: dense 16-bit products with fp32 sums; bandwidth, bus: GB/s (bus: usable, one way); bf16: has bf16 units"""

    name: str
    vram_gb: float
    tflops: float
    bandwidth: float
    bus: float
    bf16: bool
    source: str


def geforce(
    name: str,
    vram_gb: float,
    tensor_cores: int,
    boost_mhz: int,
    bandwidth: float,
    *,
    bus: float = 24.0,
    fma: int = 128,
    bf16: bool = True,
) -> Card:
    tflops = tensor_cores * fma * 2 * boost_mhz * 1e6 / 1e12 / 2
    return Card(
        name,
        vram_gb,
        tflops,
        bandwidth,
        bus,
        bf16,
        f"{tensor_cores} tensor cores x {fma} FMA x 2 x {boost_mhz} MHz, halved for fp32 sums",
    )


DROPPED = ("nvidia", "geforce", "tesla", "gpu", "pcie", "sxm4", "sxm")  # words of a card's name that say nothing here
X8 = 12.0  # GB/s that 8 lanes of PCIe 4.0, or 16 of 3.0, carry in practice (half of the study's 24 for 16 lanes of 4.0)

CARDS: tuple[Card, ...] = (
    geforce("RTX 2060", 6, 240, 1680, 336, bus=X8, fma=64, bf16=False),
    geforce("RTX 2080 Ti", 11, 544, 1545, 616, bus=X8, fma=64, bf16=False),
    geforce("RTX 3050 6GB", 6, 72, 1470, 168, bus=X8),
    geforce("RTX 3050", 8, 80, 1777, 224, bus=X8),
    geforce("RTX 3060", 12, 112, 1777, 360),
    geforce("RTX 3060 Ti", 8, 152, 1665, 448),
    geforce("RTX 3070", 8, 184, 1725, 448),
    geforce("RTX 3080", 10, 272, 1710, 760),
    geforce("RTX 3090", 24, 328, 1695, 936),
    geforce("RTX 4060", 8, 96, 2460, 272, bus=X8),
    geforce("RTX 4060 Ti", 16, 136, 2535, 288, bus=X8),
    geforce("RTX 4070", 12, 184, 2475, 504),
    geforce("RTX 4070 Ti SUPER", 16, 264, 2610, 672),
    geforce("RTX 4080", 16, 304, 2505, 717),
    geforce("RTX 4090", 24, 512, 2520, 1008),
    geforce("RTX 5090", 32, 680, 2407, 1792, bus=48.0),
    Card("T4", 16, 65.1, 320, X8, False, "320 tensor cores x 64 FMA x 2 x 1590 MHz; not halved on this board"),
    Card("L4", 24, 121, 300, 24.0, True, "maker's data sheet, dense bf16"),
    Card("A100", 80, 312, 2039, 24.0, True, "maker's data sheet (80 GB SXM), dense bf16"),
    Card(
        "H200", 141, 788, 4800, 48.0, True, "bf16 product measured by the shared study; bandwidth from the data sheet"
    ),
)


USUAL = {
    "4gb": "RTX 3050",
    "6gb": "RTX 3050 6GB",
    "8gb": "RTX 3060 Ti",
    "12gb": "RTX 3060",
    "16gb": "RTX 4060 Ti",
    "24gb": "RTX 3090",
}  # preset -> the card whose speed a plan estimates where none is named


def find(name: str) -> Card:
    """The card that `name` means: 'RTX 3060', '3060' or 'NVIDIA GeForce RTX 3060'. Raises ConfigError for an unknown one."""
    card = match(name)
    if card is None:
        known = ", ".join(card.name for card in CARDS)
        raise ConfigError(f"No published rates are known here for the card {name!r}.", f"Name one of: {known}.")
    return card


def match(name: str) -> Card | None:
    """As `find`, but None for an unknown card (a detected one may well be unknown). A size in the name, such as 8GB, is
    another edition's memory; laptop editions are other cards under the same name, so they are unknown."""
    wanted = _words(name)
    known = {tuple(_words(card.name)): card for card in CARDS}
    for words in (wanted, ["rtx", *wanted]):
        if tuple(words) in known:
            return known[tuple(words)]
    sizes = [float(word[:-2]) for word in wanted if _is_size(word)]
    edition = match(" ".join(word for word in wanted if not _is_size(word))) if sizes else None
    return replace(edition, vram_gb=sizes[0]) if edition else None


def _words(name: str) -> list[str]:
    """'NVIDIA GeForce RTX 4060 Ti 8 GB' -> rtx, 4060, ti, 8gb"""
    joined = re.sub(r"(\d+) gb\b", r"\1gb", name.lower().replace("-", " "))
    return [word for word in joined.split() if word not in DROPPED]


def _is_size(word: str) -> bool:
    return word.endswith("gb") and word[:-2].isdigit()


def seconds(work: Watched, card: Card) -> float:
    """Estimated time of a simulated step on `card`, played back on its clocks."""
    return timeline.seconds(work.timeline, rates(card))


def rates(card: Card) -> timeline.Rates:
    """What of its published rates a card is expected to reach."""
    return timeline.Rates(
        card.tflops * 1e12 * calibration.MATMUL_EFFICIENCY.amount,
        card.bandwidth * 1e9 * calibration.BANDWIDTH_EFFICIENCY.amount,
        card.bus * 1e9,
        calibration.DUPLEX_SHARE.amount,
        calibration.LAUNCH_SECONDS.amount,
    )
