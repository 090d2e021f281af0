"""The budget against torch's own rules for devices, and spills, on a machine without a card."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer.events import Step
from trainer.plan import calibration
from trainer.plan.calibration import GIB
from trainer.run import limit
from trainer.settings import overlay


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
    notice = limit.enforce(12 * GIB, device)
    assert card["number"] == number and "12.0" in notice.text
    assert card["share"] * 24 * GIB == pytest.approx(12 * GIB - calibration.CONTEXT_BYTES.amount)


def test_the_budget_leaves_the_context_out_of_the_allocators_share():
    assert limit.fraction(12 * GIB, 24 * GIB) == pytest.approx((12 - 0.42) / 24)
    assert limit.fraction(99 * GIB, 24 * GIB) == 1.0
    assert limit.fraction(12 * GIB, 24 * GIB, GIB) == pytest.approx(11 / 24), "the context as it was measured here"
    assert "CPU" in limit.enforce(12 * GIB, "cpu").text


@pytest.mark.parametrize(("reserved", "seconds", "system", "spilled"), [
    (9 * GIB, [0.3] * 20, "Linux", True),  # more than there is
    (7.9 * GIB, [0.3] * 20 + [3.0] * 3, "Windows", True),
    (7.9 * GIB, [0.3] * 20 + [3.0] * 3, "Linux", False),  # there the driver fails instead
    (7.9 * GIB, [0.3] * 20 + [3.0, 0.3, 0.3], "WSL", False),  # one slow step is a preview, not a spill
    (4 * GIB, [0.3] * 20 + [3.0] * 3, "WSL", False),
])  # fmt: skip
def test_a_spill_into_shared_memory_is_noticed(reserved, seconds, system, spilled):
    notice = limit.spill_watch(int(reserved), 8 * GIB, seconds, system)
    assert (notice is not None) == spilled
    assert notice is None or notice.level == "warning"


@pytest.mark.parametrize("preset", overlay.presets())
def test_a_spill_is_noticed_although_the_process_keeps_to_its_preset(preset):
    card = int(preset.removesuffix("gb")) * GIB
    allowed = limit.fraction(int(overlay.load({"preset": preset}).memory.vram_gb * GIB), card) * card
    assert limit.spill_watch(int(0.98 * allowed), card, [0.3] * 20 + [3.0] * 3, "Windows") is not None


def test_a_spill_is_said_once(card):
    spills = limit.Spills(torch.device("cuda"))
    steps = [Step(n, 9, *[0.0] * 5, 0.3, 1, 0, 0, 25 * GIB, 0) for n in range(3)]
    assert [len(spills(step)) for step in steps] == [1, 0, 0]
    assert limit.Spills(torch.device("cpu"))(steps[0]) == []
