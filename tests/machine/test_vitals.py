"""The vital signs where a card, or this machine, does not tell all of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from trainer.machine.vitals import Vitals


class Refusal(Exception):
    """NVML's errors are of no kind that torch or Python knows."""


def test_a_card_that_does_not_tell_its_load_is_no_reason_to_stop(monkeypatch):
    def refuse(device):
        raise Refusal("Not Supported")

    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 5)
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=Refusal))
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    vitals = Vitals(torch.device("cuda"))
    assert [vitals.read()["vram_bytes"] for _ in range(2)] == [5, 5]
    assert vitals.read()["gpu_load"] != vitals.read()["gpu_load"], "unknown is nan"


def test_time_between_marks_is_wall_time_on_a_cpu():
    vitals = Vitals(torch.device("cpu"))
    first, second = vitals.mark(), vitals.mark()
    assert 0 <= vitals.seconds(first, second) < 1
