"""Published rates of graphics cards, and how long counted work would take there: a roofline, never a measurement.

    seconds = max(flops / (rate * efficiency) + bytes / (bandwidth * efficiency), operators * launch) + what copies cannot hide

A rate is tensor cores * FMAs a clock * 2 * boost clock, from the makers' architecture papers (Turing TU102/TU106, Ampere
GA102, Ada AD102, Blackwell GB202); GeForce halves it where fp16 or bf16 products are summed in fp32, as training needs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

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


@dataclass(frozen=True)
class Link:
    """What joins two cards. rate: GB/s that each sends while it receives as much; through_host: over the bus and host memory,
    because consumer cards reach each other in no other way; most: cards that it joins."""

    rate: float
    through_host: bool
    source: str
    most: int = 8


LINKS = {
    "pcie": Link(10.0, True, "PCIe 4.0 x16 through host memory, 8 to 12 GB/s"),
    "pcie_x8": Link(5.0, True, "PCIe 4.0 x8 through host memory, 4 to 6 GB/s"),
    "nvlink": Link(50.0, False, "an NVLink bridge of two cards", most=2),
    "server": Link(300.0, False, "NVLink or NVSwitch of servers"),
}


@dataclass(frozen=True)
class TensorCore:
    """Of one generation: `fma`, 16-bit multiply-adds a clock; `bf16`: of bf16, too"""

    fma: int
    bf16: bool


TURING, AMPERE = TensorCore(64, bf16=False), TensorCore(128, bf16=True)  # and all that came after


def geforce(
    name: str,
    vram_gb: float,
    tensor_cores: int,
    boost_mhz: int,
    bandwidth: float,
    *,
    bus: float = 24.0,
    each: TensorCore = AMPERE,
) -> Card:
    tflops = tensor_cores * each.fma * 2 * boost_mhz * 1e6 / 1e12 / 2
    source = f"{tensor_cores} tensor cores x {each.fma} FMA x 2 x {boost_mhz} MHz, halved for fp32 sums"
    return Card(name, vram_gb, tflops, bandwidth, bus, each.bf16, source)


BF16 = (8, 0)  # the first compute capability whose units compute in bf16; older ones only pretend to
DROPPED = (
    "nvidia geforce tesla gpu pcie sxm sxm2 sxm3 sxm4 sxm5 hbm2 hbm2e hbm3 hbm3e nvl".split()
)  # words that say nothing here
X8 = 12.0  # GB/s that 8 lanes of PCIe 4.0, or 16 of 3.0, carry in practice (half of the study's 24 for 16 lanes of 4.0)
GEN5 = 48.0  # 16 lanes of PCIe 5.0
turing = partial(geforce, each=TURING, bus=X8)


def plain(name: str, vram_gb: float, cores: int, boost_mhz: int, bandwidth: float) -> Card:
    """A GTX 16xx, which has no tensor cores: as fast as in fp32, which is also what its convolutions fall back to."""
    source = f"{cores} cores x 2 x {boost_mhz} MHz, no tensor cores"
    return Card(name, vram_gb, cores * 2 * boost_mhz / 1e6, bandwidth, X8, False, source)


CARDS: tuple[Card, ...] = (
    plain("GTX 1650", 4, 896, 1665, 128),
    plain("GTX 1650 SUPER", 4, 1280, 1725, 192),
    plain("GTX 1650 Laptop", 4, 1024, 1560, 128),
    plain("GTX 1650 Ti Laptop", 4, 1024, 1485, 192),
    plain("GTX 1660", 6, 1408, 1785, 192),
    plain("GTX 1660 SUPER", 6, 1408, 1785, 336),
    plain("GTX 1660 Ti", 6, 1536, 1770, 288),
    plain("GTX 1660 Ti Laptop", 6, 1536, 1590, 288),
    turing("RTX 2060", 6, 240, 1680, 336),
    turing("RTX 2060 Laptop", 6, 240, 1560, 336),
    turing("RTX 2060 SUPER", 8, 272, 1650, 448),
    turing("RTX 2070", 8, 288, 1620, 448),
    turing("RTX 2070 Laptop", 8, 288, 1440, 448),
    turing("RTX 2070 SUPER", 8, 320, 1770, 448),
    turing("RTX 2070 SUPER Laptop", 8, 320, 1380, 448),
    turing("RTX 2080", 8, 368, 1710, 448),
    turing("RTX 2080 Laptop", 8, 368, 1590, 448),
    turing("RTX 2080 SUPER", 8, 384, 1815, 496),
    turing("RTX 2080 SUPER Laptop", 8, 384, 1560, 448),
    turing("RTX 2080 Ti", 11, 544, 1545, 616),
    geforce("RTX 3050 6GB", 6, 72, 1470, 168, bus=X8),
    geforce("RTX 3050", 8, 80, 1777, 224, bus=X8),
    geforce("RTX 3050 Laptop", 4, 64, 1740, 192, bus=X8),
    geforce("RTX 3050 Ti Laptop", 4, 80, 1695, 192, bus=X8),
    geforce("RTX 3060", 12, 112, 1777, 360),
    geforce("RTX 3060 Laptop", 6, 120, 1703, 336),
    geforce("RTX 3060 Ti", 8, 152, 1665, 448),
    geforce("RTX 3070", 8, 184, 1725, 448),
    geforce("RTX 3070 Laptop", 8, 160, 1620, 448),
    geforce("RTX 3070 Ti", 8, 192, 1770, 608),
    geforce("RTX 3070 Ti Laptop", 8, 184, 1485, 448),
    geforce("RTX 3080", 10, 272, 1710, 760),
    geforce("RTX 3080 12GB", 12, 280, 1710, 912),
    geforce("RTX 3080 Laptop", 8, 192, 1710, 448),
    geforce("RTX 3080 Ti", 12, 320, 1665, 912),
    geforce("RTX 3080 Ti Laptop", 16, 232, 1590, 512),
    geforce("RTX 3090", 24, 328, 1695, 936),
    geforce("RTX 3090 Ti", 24, 336, 1860, 1008),
    geforce("RTX 4050 Laptop", 6, 80, 2370, 192, bus=X8),
    geforce("RTX 4060", 8, 96, 2460, 272, bus=X8),
    geforce("RTX 4060 Laptop", 8, 96, 2370, 256, bus=X8),
    geforce("RTX 4060 Ti", 16, 136, 2535, 288, bus=X8),
    geforce("RTX 4070", 12, 184, 2475, 504),
    geforce("RTX 4070 Laptop", 8, 144, 2175, 256, bus=X8),
    geforce("RTX 4070 SUPER", 12, 224, 2475, 504),
    geforce("RTX 4070 Ti", 12, 240, 2610, 504),
    geforce("RTX 4070 Ti SUPER", 16, 264, 2610, 672),
    geforce("RTX 4080", 16, 304, 2505, 717),
    geforce("RTX 4080 Laptop", 12, 232, 2280, 432),
    geforce("RTX 4080 SUPER", 16, 320, 2550, 736),
    geforce("RTX 4090", 24, 512, 2520, 1008),
    geforce("RTX 4090 Laptop", 16, 304, 2040, 576),
    geforce("RTX 5050", 8, 80, 2572, 320),
    geforce("RTX 5050 Laptop", 8, 80, 2500, 384),
    geforce("RTX 5060", 8, 120, 2497, 448),
    geforce("RTX 5060 Laptop", 8, 104, 2497, 384),
    geforce("RTX 5060 Ti", 16, 144, 2572, 448),
    geforce("RTX 5070", 12, 192, 2512, 672, bus=GEN5),
    geforce("RTX 5070 Laptop", 8, 144, 2347, 384),
    geforce("RTX 5070 Ti", 16, 280, 2452, 896, bus=GEN5),
    geforce("RTX 5070 Ti Laptop", 12, 184, 2220, 672),
    geforce("RTX 5080", 16, 336, 2617, 960, bus=GEN5),
    geforce("RTX 5080 Laptop", 16, 240, 2287, 896),
    geforce("RTX 5090", 32, 680, 2407, 1792, bus=GEN5),
    geforce("RTX 5090 Laptop", 24, 328, 2160, 896),
    Card("T4", 16, 65.1, 320, X8, False, "320 tensor cores x 64 FMA x 2 x 1590 MHz; not halved on this board"),
    Card("V100", 16, 125, 900, X8, False, "maker's data sheet (SXM2), fp16"),
    Card("A10", 24, 125, 600, 24.0, True, "maker's data sheet, dense bf16"),
    Card("A10G", 24, 70, 600, 24.0, True, "maker's data sheet, dense bf16"),
    Card("RTX A4000", 16, 76.7, 448, 24.0, True, "maker's data sheet, dense bf16"),
    Card("L4", 24, 121, 300, 24.0, True, "maker's data sheet, dense bf16"),
    Card("A100", 80, 312, 2039, 24.0, True, "maker's data sheet (80 GB SXM), dense bf16"),
    Card("H100", 80, 989, 3350, GEN5, True, "maker's data sheet (SXM), dense bf16"),
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
    another edition's memory; a laptop edition is another card under the same name, and some exist in laptops only."""
    wanted = _words(name)
    known = {tuple(_words(card.name)): card for card in CARDS}
    for words in (wanted, ["rtx", *wanted], ["gtx", *wanted], [*wanted, "laptop"], ["rtx", *wanted, "laptop"]):
        if tuple(words) in known:
            return known[tuple(words)]
    sizes = [float(word[:-2]) for word in wanted if _is_size(word)]
    edition = match(" ".join(word for word in wanted if not _is_size(word))) if sizes else None
    return replace(edition, vram_gb=sizes[0]) if edition else None


def _words(name: str) -> list[str]:
    """'NVIDIA GeForce RTX 4060 Ti 8 GB' -> rtx, 4060, ti, 8gb"""
    joined = re.sub(r"(\d+) gb\b", r"\1gb", name.lower().replace("-", " "))
    joined = joined.replace("with max q design", "laptop").replace("mobile", "laptop")
    return [word for word in joined.split() if word not in DROPPED]


def _is_size(word: str) -> bool:
    return word.endswith("gb") and word[:-2].isdigit()


FMA = {
    (7, 0): 512,
    (7, 2): 512,
    (7, 5): 512,
    (8, 0): 1024,
    (8, 6): 512,
    (8, 7): 512,
    (8, 9): 512,
    (9, 0): 2048,
    (12, 0): 512,
}
# 16-bit multiply-adds a clock and multiprocessor, by compute capability; newer ones are taken for the last


@dataclass(frozen=True)
class Device:
    """What a driver says of a card. Numbers are 0 where it says nothing."""

    name: str
    capability: tuple[int, int]
    processors: int
    memory_bytes: int
    clock_mhz: float = 0.0
    bandwidth: float = 0.0  # GB/s


def estimated(device: Device) -> Card:
    """The rates of a card that is here but not in the table, from its multiprocessors and clock."""
    clock, bandwidth = device.clock_mhz or 1500.0, device.bandwidth or 250.0
    words = device.name.lower().split()
    tensor = device.capability >= (7, 0) and not any(word == "gtx" for word in words)
    each = (FMA.get(device.capability) or FMA[max(FMA)]) if tensor else 64
    halved = 2 if tensor and "geforce" in words else 1
    tflops = device.processors * each * 2 * clock / 1e6 / halved
    at = f"{clock:.0f} MHz" if device.clock_mhz else f"an assumed {clock:.0f} MHz"
    source = f"estimated from {device.processors} multiprocessors at {at}, not in the table of cards"
    return Card(device.name, device.memory_bytes / 2**30, tflops, bandwidth, X8, device.capability >= BF16, source)


def joined(card: Card, wanted: str = "auto") -> Link:
    """What joins several of `card`, unless somebody says: its bus."""
    if wanted == "auto":
        wanted = "server" if card.name in ("A100", "H100") else "pcie_x8" if card.bus <= X8 else "pcie"
    return LINKS[wanted]


def seconds(
    work: Watched,
    card: Card,
    recorded: bool = False,
    link: Link | None = None,
    constants: calibration.Constants = calibration.ASSUMED,
) -> float:
    """Estimated time of a simulated step on `card`, played back on its clocks; `recorded`: as a CUDA graph; `link`: to others."""
    return timeline.seconds(work.timeline, speeds(card, recorded, link, constants))


def speeds(
    card: Card,
    recorded: bool = False,
    link: Link | None = None,
    constants: calibration.Constants = calibration.ASSUMED,
) -> timeline.Speeds:
    """What was measured of a card, and what it is expected to reach of its published rates. Of a recorded step the host
    queues nothing but its start."""
    link, flops, bus = link or joined(card), constants.flops, constants.bus
    return timeline.Speeds(
        card.tflops * 1e12 * calibration.MATMUL_EFFICIENCY.amount if flops is None else flops.amount,
        card.bandwidth * 1e9 * calibration.BANDWIDTH_EFFICIENCY.amount,
        card.bus * 1e9 if bus is None else bus.amount,
        constants.duplex.amount,
        0.0 if recorded else constants.launch.amount,
        calibration.KERNEL_SECONDS.amount,
        link.rate * 1e9,
        link.through_host,
        calibration.MESSAGE_SECONDS.amount,
    )
