"""What a simulation cannot see: bytes and efficiencies that belong to a driver, a library or a card, not to our code.

Every number says whether it was measured and where it came from; the planner adds them to what it simulates and names
them in its table. `python -m benchmarks planner` on a GPU prints planned against measured; a corrected value goes here,
with card, driver, torch version and date in its `source`, and `measured=True`.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Value:
    amount: float
    measured: bool
    source: str


STUDY = "assumed, not measured; shared study of September 2026, sections 1.1 and 8"

CONTEXT_BYTES = Value(0.42 * GIB, False, f"CUDA context and loaded kernels, headless Linux: {STUDY}")
WORKSPACE_BYTES = Value(0.18 * GIB, False, f"cuBLAS and cuDNN workspaces: {STUDY}")
ALLOCATOR_SHARE = Value(
    0.04, False, f"rounding and fragmentation of the caching allocator, share of live tensors: {STUDY}"
)
MARGIN_BYTES = Value(
    0.125 * GIB, False, "left free of what a card has free when a plan is made, for a screen that grows: assumed"
)
PROCESS_RAM_BYTES = Value(
    0.9 * GIB, False, "Python, torch, diffusers and transformers imported, on Linux: assumed, not measured on CUDA"
)
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
    6e-6, False, "host time for one eager operator; a step cannot be faster than its operators: assumed"
)

VALUES = {
    name: value for name, value in globals().copy().items() if isinstance(value, Value)
}  # for `plan`, which says under its estimates what of them is assumed


def overhead(tensor_bytes: int) -> dict[str, int]:
    """Kind -> bytes beside `tensor_bytes` of live tensors, for a process that has a CUDA context."""
    return {
        "context": int(CONTEXT_BYTES.amount),
        "workspaces": int(WORKSPACE_BYTES.amount),
        "allocator": int(ALLOCATOR_SHARE.amount * tensor_bytes),
    }


def gib(size: int | float | None) -> str:
    """A size for the eye."""
    return "-" if size is None else f"{size / GIB:.2f} GiB"
