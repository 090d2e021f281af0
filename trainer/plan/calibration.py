"""What a simulation cannot see: bytes and efficiencies that belong to a driver, a library or a card, not to our code.

Every number says whether it was measured and where it came from; the planner adds them to what it simulates and names
them in its table. `python -m benchmarks planner` on a GPU prints planned against measured; a corrected value goes here,
with card, driver, torch version and date in its `source`, and `measured=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Value:
    """upper: as far as an expert's guess goes for consumer cards, where the amount is one; here: measured on the very card
    that the plan is for."""

    amount: float
    measured: bool
    source: str
    upper: float | None = None
    here: bool = False


STUDY = "assumed, not measured; shared study of September 2026, sections 1.1 and 8"
H200 = "H200, driver 580, torch 2.11.0+cu130, Python 3.12 on a Xeon, 26 November 2026"
H200_AGAIN = "H200, driver 580, torch 2.11.0+cu130, Python 3.12 on a Xeon, 27 November 2026"

CONTEXT_BYTES = Value(
    0.42 * GIB, False, f"CUDA context and loaded kernels, headless Linux: {STUDY}. An H200, with more multiprocessors than any "
    "card this is for, took 0.51 to 0.61, and 0.84 behind a run's steps, when all libraries and kernels were there",
    upper=0.65 * GIB,
)  # fmt: skip
WORKSPACE_BYTES = Value(
    0.24 * GIB, True, "cuBLAS and cuDNN workspaces: by so much, at most, torch had handed out more at the peak of an SD 1.5 step "
    f"than its tensors take, of seven ways to hold it (0.09 where units are recomputed); {H200}",
    upper=0.25 * GIB,
)  # fmt: skip
ALLOCATOR_SHARE = Value(
    0.04, False, f"rounding and fragmentation of the caching allocator, share of live tensors: {STUDY}", upper=0.06
)
LATER_BYTES = Value(
    0.11 * GIB, True, "kernels and libraries that a run loads when it first needs them, after its card was measured: the "
    f"context was 864 MiB behind a run's steps, and 757 where a process had just measured it; {H200_AGAIN}",
)  # fmt: skip
MARGIN_BYTES = Value(
    0.125 * GIB, False, "left free of what a card has free when a plan is made, for a screen that grows: assumed"
)
PROCESS_RAM_BYTES = Value(
    0.9 * GIB, False, "Python, torch, diffusers and transformers imported, on Linux: assumed, not measured on CUDA"
)
RECORDING_SHARE = Value(
    0.23, True, "what a recorded step's memory is larger than an eager one's, a share of what it takes beside weights and "
    f"state: 7,590 instead of 7,104 MiB reserved, 4,201 of them weights and state of SD 1.5; {H200}",
)  # fmt: skip
MATMUL_EFFICIENCY = Value(
    0.72, False, f"share of the published tensor rate that bf16 channels-last work reaches: {STUDY}"
)
BANDWIDTH_EFFICIENCY = Value(
    0.85, False, "share of the published memory bandwidth that streaming kernels reach: assumed"
)
DUPLEX_SHARE = Value(
    0.9, False, "share of the bus's rate one way that is left while copies go the other way as well: assumed"
)
LAUNCH_SECONDS = Value(
    23e-6,
    True,
    f"host time for one eager operator: 229 ms for the 9,831 of an SD 1.5 step, 417 for 17,446 streamed; {H200}",
)
KERNEL_SECONDS = Value(
    2.1e-6, True, "a card's own time to begin and end one operator's kernels: what arithmetic and bytes leave of the 38.4 ms "
    f"of an SD 1.5 step that is replayed as one CUDA graph (43.0 with units recomputed); {H200}",
)  # fmt: skip
MESSAGE_SECONDS = Value(
    40e-6,
    False,
    "what a message between cards takes beside its bytes: assumed, some tens of microseconds of NCCL's own kernels",
)


@dataclass(frozen=True)
class Constants:
    """The numbers that a card's probe can replace. flops, bus: of a second; None: the published rates of a card's name."""

    context: Value = CONTEXT_BYTES
    workspaces: Value = WORKSPACE_BYTES
    allocator: Value = ALLOCATOR_SHARE
    launch: Value = LAUNCH_SECONDS
    duplex: Value = DUPLEX_SHARE
    flops: Value | None = None
    bus: Value | None = None
    searches: bool = False  # whether cuDNN's search for faster algorithms pays, in memory that is planned
    date: str = ""  # when it was measured

    def overhead(self, tensor_bytes: int, pages: int = 0) -> dict[str, int]:
        """Kind -> bytes beside `tensor_bytes` of live tensors, for a process that has a CUDA context; `pages`: what the
        allocator was seen to hold for them in a simulation."""
        return {
            "context": int(self.context.amount),
            "workspaces": int(self.workspaces.amount),
            "allocator": max(int(self.allocator.amount * tensor_bytes), pages - tensor_bytes),
        }

    def process(self, tensor_bytes: int, pages: int = 0) -> int:
        """Bytes of the whole process."""
        return tensor_bytes + sum(self.overhead(tensor_bytes, pages).values())

    @property
    def upper(self) -> Constants:
        """With what was not measured here as large as it is guessed to be at most."""
        return replace(
            self,
            **{
                name: replace(value, amount=max(value.amount, value.upper))
                for name, value in self.values().items()
                if value.upper is not None and not value.here
            },
        )

    def values(self) -> dict[str, Value]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Value)}

    def said(self, here: bool) -> list[str]:
        """In words: what was measured on this card, with its number, or what was not."""
        known = {name: value.amount for name, value in self.values().items() if value.here}
        if not here:
            return [words for name, words in WORDS.items() if name not in known]
        return [f"{WORDS[name]} {SHOWN[name](amount)}" for name, amount in known.items()]


WORDS = {
    "context": "context",
    "workspaces": "workspaces",
    "allocator": "the allocator's share",
    "flops": "arithmetic",
    "bus": "the bus",
    "duplex": "both ways of it at once",
    "launch": "the host's time for an operator",
}
SHOWN: dict[str, Callable[[float], str]] = {
    "context": lambda amount: gib(amount),
    "workspaces": lambda amount: gib(amount),
    "allocator": lambda amount: f"{100 * amount:.0f} %",
    "flops": lambda amount: f"{amount / 1e12:.3g} TFLOP/s",
    "bus": lambda amount: f"{amount / 1e9:.1f} GB/s",
    "duplex": lambda amount: f"{amount:.2f} of that",
    "launch": lambda amount: f"{amount * 1e6:.0f} us",
}
ASSUMED = Constants()


def worse(found: Sequence[Constants]) -> Constants:
    """What several cards that follow one plan are planned with: of each number the one that costs most."""

    def most(values: Iterable[Value]) -> Value:
        return max(values, key=lambda value: value.amount)

    def least(values: Sequence[Value | None]) -> Value | None:
        known = [value for value in values if value is not None]
        return min(known, key=lambda value: value.amount) if len(known) == len(values) else None

    return Constants(
        most(each.context for each in found),
        most(each.workspaces for each in found),
        most(each.allocator for each in found),
        most(each.launch for each in found),
        min((each.duplex for each in found), key=lambda value: value.amount),
        least([each.flops for each in found]),
        least([each.bus for each in found]),
        all(each.searches for each in found),
        found[0].date,
    )


def gib(size: int | float | None) -> str:
    """A size for the eye."""
    return "-" if size is None else f"{size / GIB:.2f} GiB"
