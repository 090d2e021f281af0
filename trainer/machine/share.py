"""What a process has of a card by the driver's own account: context, libraries and everything torch holds.

What is free on a card falls with what any program takes, so a difference of it is a process's own only as long as no other
one comes or goes. The driver knows better, and says so on Linux; not under Windows, not for a slice of a card, and not inside
a container, whose processes have other numbers outside.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

import torch

SECONDS = 5.0  # a driver that does not answer by then is not waited for


def own_bytes(device: torch.device) -> int | None:
    """Of this process on `device`, a card; None where the driver does not say, or says what cannot be."""
    with suppress(OSError, subprocess.SubprocessError, RuntimeError, AttributeError):
        card = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        query = ["nvidia-smi", "-i", card, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        found = read(said, os.getpid())
        return found if found is not None and found >= torch.cuda.memory_reserved(device) else None
    return None


def read(said: str, pid: int) -> int | None:
    """Bytes of process `pid` in lines of "pid, MiB"; None where it is not among them or has no number."""
    for line in said.splitlines():
        number, _, used = (word.strip() for word in line.partition(","))
        if number == str(pid) and used.isdigit():
            return int(used) * 2**20
    return None
