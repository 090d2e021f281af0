"""Kernel or reference: found out once, by building a kernel, and then known to whoever runs or plans a step.

Triton compiles on the user's machine. It needs a C compiler and Python's headers there, and is often imported where it has
neither (Windows, slim images), so that the first step would be where a run ends. Here one small kernel is built while a run
is prepared. Where that fails every kernel's reference works instead: the same arithmetic in plain torch, slower, and with
fp32 copies of what it works on. A plan has to count these, so under `references()` a simulation runs them as well.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.errors import TritonError
except ImportError:
    triton, TritonError = None, ImportError

# Triton's own errors, what its build step raises, and what a driver or a library that is not there looks like
FAILURES = (TritonError, RuntimeError, OSError, ImportError, AttributeError, subprocess.SubprocessError)

Made = TypeVar("Made")

_broken: dict[int, str] = {}  # card -> why no kernel can be built for it; "" where one was
_references = False  # whether a simulation runs the references


if triton is not None:

    @triton.jit
    def double(x, y):
        at = tl.arange(0, 128)
        tl.store(y + at, tl.load(x + at) * 2)


def takes(x: Tensor) -> bool:
    """Whether a kernel works on `x`; else its reference does. Who made no plan (`sample RUN`) tries it out here."""
    return x.is_cuda and triton is not None and not trial(x.get_device())


def on_its_card(launch: Callable[..., Made]) -> Callable[..., Made]:
    """`launch` for the card of its first tensor: Triton launches on the current one, whichever that is."""

    @wraps(launch)
    def launched(x: Tensor, *rest: object) -> Made:
        if x.is_cuda and x.get_device() != torch.cuda.current_device():
            with torch.cuda.device_of(x):
                return launch(x, *rest)
        return launch(x, *rest)

    return launched


def simulates(x: Tensor) -> bool:
    """Whether a simulated operator is to run its reference, whose temporaries then count."""
    return _references and x.is_meta


@contextmanager
def references() -> Iterator[None]:
    """Inside, what is simulated runs without kernels."""
    global _references
    before, _references = _references, True
    try:
        yield
    finally:
        _references = before


def trial(card: int) -> str:
    """Why no kernel can be built for this card, in a line; empty where one was built and was right. Asked once a process."""
    if card not in _broken:
        _broken[card] = attempt(torch.device("cuda", card))
    return _broken[card]


def attempt(device: torch.device) -> str:
    """Build one kernel and run it."""
    if triton is None:
        return "Triton is not installed"
    try:
        x = torch.arange(128, dtype=torch.float32, device=device)
        y = torch.empty_like(x)
        with torch.cuda.device_of(x):
            double[(1,)](x, y)
        right = torch.equal(y, 2 * x)
    except FAILURES as error:
        return f"Triton cannot build a kernel: {first_line(error)}"
    return "" if right else "Triton built a kernel that computes wrong numbers"


def first_line(error: BaseException) -> str:
    said = getattr(error, "stderr", None) or str(error)
    said = said.decode(errors="replace") if isinstance(said, bytes) else said
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)[:160]


def remedy(reason: str) -> str:
    """What to do about `trial`'s answer on this machine."""
    if platform.system() == "Windows":
        return "pip install triton-windows, in the version that belongs to this torch."
    if "not installed" in reason:
        return "pip install the triton that belongs to this torch."
    if "Python.h" in reason:
        return f"Install Python's headers (apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev)."
    return "Install a C compiler and Python's headers (apt install gcc python3-dev)."
