"""A device learned by doing: the same code on a CPU as on a card, here and in a process of its own."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, astuple, replace

import pytest
import torch

from trainer.errors import ConfigError
from trainer.machine import probe
from trainer.machine.convolutions import Shape
from trainer.machine.probe import Meter, Operator, Seen, Work

CPU = torch.device("cpu")
WORK = Work("float32", (Shape(1, 16, 8, 8), Shape(1, 32, 4, 4)), ((64, 32, 64),), (1, 2, 16, 8))
SIZE = 1 << 20


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(probe, "TURN", 1e-4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def seen() -> Seen:
    return probe.measure(WORK, CPU, size=SIZE)


def test_a_cpu_has_rates_and_no_memory_of_a_card(seen):
    assert (seen.bare, seen.context, seen.workspaces, seen.searched) == (0, 0, 0, 0)
    rates = (seen.plain, seen.quick, seen.products, seen.up, seen.down, seen.both)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    # one thread copies up, then down: each way has at most what it has alone, but for the noise of a busy machine
    assert seen.both < 2 * max(seen.up, seen.down)


def test_a_run_without_convolutions_is_measured_by_its_products():
    found = probe.measure(replace(WORK, convolutions=()), CPU, size=SIZE)
    assert found.plain == found.quick == found.products > 0


def test_another_process_measures_the_same_things_and_what_it_says_comes_back_as_it_was(seen):
    found = probe.apart(WORK, CPU, size=SIZE)
    assert [type(value) for value in astuple(found)] == [type(value) for value in astuple(seen)]
    assert Seen.from_json(asdict(found)) == found and Work.from_json(asdict(WORK)) == WORK


def test_a_process_that_breaks_off_is_a_refusal_with_its_last_words():
    with pytest.raises(ConfigError, match=r"cpu could not be measured: .*float33"):
        probe.apart(replace(WORK, dtype="float33"), CPU, size=SIZE)


@pytest.mark.parametrize(
    "change", [{"up": 0.0}, {"plain": float("nan")}, {"context": -1}, {"down": "fast"}, {"more": 1}], ids=str
)
def test_what_no_device_says_is_not_believed(seen, change):
    with pytest.raises((ValueError, TypeError)):
        Seen.from_json(asdict(seen) | change)


def test_a_workspace_is_what_was_handed_out_beyond_results_and_gradients():
    sizes = [70, 1000, 150]

    class Handed(Meter):
        """As a card's allocator would report them."""

        def most(self, act):
            act()
            return sizes.pop(0)

    done = []
    operators = [Operator(lambda: done.append(1), 0, 100)] * 3
    assert probe.most(operators, Handed(CPU)) == 900 and len(done) == 3
    assert probe.most([], Meter(CPU)) == 0 and probe.rate([], Meter(CPU)) == 0


def test_an_operator_counts_its_arithmetic_and_its_bytes():
    one = probe.convolution(Shape(2, 16, 8, 4), torch.float32, CPU)
    assert one.flops == 3 * 2 * (2 * 8 * 4) * 16 * 16 * 9
    assert one.makes == 4 * (2 * 16 * 8 * 4 * 2 + 16 * 16 * 9)  # as many outputs as inputs
    out, (dx, dw) = one.act()
    assert one.makes == out.nbytes + dx.nbytes + dw.nbytes
    assert probe.product(8, 4, 6, torch.bfloat16, CPU).makes == 2 * (8 * 6 + 8 * 4 + 6 * 4)


def test_each_kernel_is_run_once_forward_and_backward():
    assert [act() for act in probe.kernels(torch.float32, CPU)] == [None] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_is_measured_by_another_process_within_what_cards_can_be():
    device = torch.device("cuda", 0)
    torch.empty(1, device=device)  # this process's own context, which is not to be counted
    levels = (Shape(2, 320, 64, 64), Shape(2, 640, 32, 32))
    dtype = "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    work = Work(dtype, levels, ((8192, 320, 2560), (2048, 640, 5120)), (2, 8, 4096, 40))
    began = time.perf_counter()
    found = probe.apart(work, device, torch.cuda.mem_get_info(device)[0])
    assert time.perf_counter() - began < 60
    assert 64 << 20 < found.bare <= found.context < 2 << 30
    assert min(found.plain, found.products) > 1e12 and max(found.quick, found.products) < 2.5e15
    assert 1e9 < min(found.up, found.down) < 2e11 and found.both <= 1.1 * max(found.up, found.down)
    assert found.workspaces < 4 << 30
