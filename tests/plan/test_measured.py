"""The budget and the vital signs against torch's own rules for devices, on a machine without a card."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from trainer.machine.vitals import Vitals
from trainer.plan import calibration
from trainer.plan import measured as budget

GIB = 2**30


@pytest.fixture
def card(monkeypatch):
    """Only the driver is replaced: torch's own functions check their arguments as on a card."""
    seen = {}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * GIB))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(
        torch._C,
        "_cuda_setMemoryFraction",
        lambda share, number: seen.update(share=share, number=number),
        raising=False,
    )
    return seen


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_budget_is_enforced_on_a_device_with_or_without_a_number(card, device, number):
    notice = budget.enforce(12 * GIB, device)
    assert card["number"] == number and "12.0" in notice.text
    assert card["share"] * 24 * GIB == pytest.approx(12 * GIB - calibration.CONTEXT_BYTES.amount)


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
