"""The fidelity benchmark says what the design rests on: 24 bits keep an update that 16 bits lose."""

import pytest
import torch
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import fidelity
from trainer.kernels.adamw_lowbit import State, step_


@pytest.fixture(scope="module")
def formats():
    return {row["what"]: row for row in fidelity._formats(4096, 1e-6)}


def test_24_bits_keep_the_update_that_bf16_loses(formats):
    assert formats["bf16, to nearest"]["error"] > 0.98
    assert formats["bf16, stochastic"]["error"] > 1.4
    assert 0.3 < formats["bf16 + bf16, Kahan"]["error"] < 0.7
    assert formats["bf16 + 8 bits, ours"]["error"] <= fidelity.TARGET_24BIT
    assert formats["fp16 + 8 bits, ours"]["error"] <= 0.03


def test_exports_in_fp16_keep_what_exports_in_bf16_lose(formats):
    assert formats["fp32, exported as fp16"]["error"] < 0.1 < 0.3 < formats["fp32, exported as bf16"]["error"]


def test_formats_that_round_at_random_lose_nothing_on_average(formats):
    for what in ("bf16 + 8 bits, ours", "fp16 + 8 bits, ours", "fp16, stochastic"):
        assert formats[what]["kept"] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("moments,allowed", [("8bit", 0.35), ("4bit", 0.5)])
def test_smooth_updates_below_the_24th_bit_are_kept_by_the_whole_optimizer(moments, allowed):
    """Constant small gradients among large ones: every update is alike, so rounding to nearest would lose them all."""
    torch.manual_seed(0)
    start = torch.rand(2048) * 0.1 + 0.06  # ulp of the pair: 4.8e-7 to 9.5e-7, of bf16 256 times as much
    states = [
        State.allocate(
            2048, weights=w, moments=m, compute_dtype=torch.bfloat16, empty=lambda s, d: torch.empty(s, dtype=d)
        ).initialise(start)
        for w, m in (("fp32", "fp32"), ("24bit", moments))
    ]
    begin = [state.master() for state in states]
    for step in range(1, 301):
        grad = 1e-3 * (0.3 + torch.randn(2048))
        for state in states:
            step_(state, grad, lr=5e-7, step=step)
    true, moved = (state.master() - b for state, b in zip(states, begin, strict=True))
    assert (moved - true).norm() <= allowed * true.norm()
    assert float(moved @ true / (true @ true)) == pytest.approx(1, abs=0.02 if moments == "8bit" else 0.2)


def test_fidelity_names_each_format_with_its_error(monkeypatch):
    monkeypatch.setattr(fidelity, "STEPS", 8)
    rows = list(fidelity.suite(Options(tiny=True)))
    assert {row["part"] for row in rows} == {"format", "optimizer"}
    for row in rows:
        assert {"what", "error", "kept", "lr", "steps", "weights", "bytes_per_weight"} <= row.keys()
