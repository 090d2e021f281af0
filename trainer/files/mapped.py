"""Weights that lie in their file: a page comes into RAM when it is read, and can leave it at any time.

safetensors files are mapped, not read, by the loaders of safetensors, diffusers and transformers alike. A model that is
loaded in the precision of its file therefore takes no memory of its own until somebody changes it: the kernel takes such
pages back when RAM is short. `forget` gives them back at once, so that what a run is seen to take is what it needs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import Tensor

PAGE = mmap.PAGESIZE
ABSENT, OF_A_FILE = 0, 0b101  # the top three bits of a pagemap entry: in RAM, swapped out, a file's page


class Stored(Mapping):
    """A file's tensors by name. Each lies in the file: asking for the next one gives the last one's pages back, so going
    through all of them takes the memory of one."""

    def __init__(self, path: Path):
        self._file = safe_open(path, "pt")
        self._names = tuple(self._file.keys())
        self._last: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is not None:
            forget(self._last)
        if name not in self._names:
            raise KeyError(name)
        found: Tensor = self._file.get_tensor(name)
        self._last = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def forget(*tensors: Tensor) -> None:
    """Give back the pages behind these tensors that are copies of a file's; a later reader gets them from the file again.

    Memory of any other kind stays as it is, and so does a tensor in which somebody has written. Linux only: elsewhere
    such pages leave when the system wants them to.
    """
    if _madvise is None:
        return
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.nbytes:
            first, end = tensor.data_ptr() // PAGE, -(-(tensor.data_ptr() + tensor.nbytes) // PAGE)
            if _unwritten(first, end):
                _madvise(ctypes.c_void_p(first * PAGE), ctypes.c_size_t((end - first) * PAGE), mmap.MADV_DONTNEED)


def give_back() -> None:
    """Memory that is free already goes back to the system. glibc keeps what it freed in pieces below 32 MiB: after a
    text encoder and a UNet had visited a CPU in fp32, 800 of 1200 MiB."""
    if _trim is not None:
        _trim(ctypes.c_size_t(0))


def _unwritten(first: int, end: int) -> bool:
    """Whether the pages are a file's own or not there: a page that was written to is the process's, not the file's."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            found = os.pread(pages.fileno(), 8 * (end - first), 8 * first)
    except OSError:  # a sandbox without it: then nothing is given back
        return False
    kinds = np.frombuffer(found, np.uint64) >> np.uint64(61)
    return len(kinds) == end - first and bool(((kinds == ABSENT) | (kinds == OF_A_FILE)).all())


_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_madvise, _trim = getattr(_libc, "madvise", None), getattr(_libc, "malloc_trim", None)
