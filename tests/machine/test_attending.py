"""Attention kernels against each other: those that take a call, and of these the fastest that keeps no more than planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from trainer.machine.attending import Timed, fastest, timed
from trainer.machine.probe import Meter

FLASH, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
CUDNN, MATH = SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
SIZE = (1, 2, 64, 77, 16)
FIRST = Timed(FLASH, 10e-3, 1000, 5000)


def test_on_a_cpu_its_own_kernels_are_timed_and_those_that_do_not_take_a_call_are_left_out():
    found = [*timed(SIZE, torch.float32, Meter(torch.device("cpu")), (FLASH, CUDNN, MATH))]
    assert [each.kernel for each in found] == [FLASH, MATH]
    assert all(each.seconds > 0 and each.kept == each.most == 0 for each in found)


def test_a_kernel_is_timed_under_the_mask_of_a_call():
    asked, mask = [], torch.ones(1, 1, 1, 77, dtype=torch.bool)

    class Listens(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is scaled_dot_product_attention:
                asked.append(args[3])
            return func(*args, **(kwargs or {}))

    with Listens():
        assert [*timed(SIZE, torch.float32, Meter(torch.device("cpu")), (MATH,), mask)]
    assert asked and all(each is mask for each in asked)


@pytest.mark.parametrize(
    "other,chosen",
    [
        (Timed(CUDNN, 7e-3, 1000, 5000), True),
        (Timed(CUDNN, 9.9e-3, 1000, 5000), False),  # no faster than noise
        (Timed(CUDNN, 7e-3, 1100, 5000), False),  # keeps what no plan counts
        (Timed(CUDNN, 7e-3, 1000, 9000), False),  # needs it for a moment
        (Timed(CUDNN, 7e-3, 1001, 5001), True),  # rounded up
        (Timed(CUDNN, 7e-3, 500, 2000), True),
    ],
)
def test_a_kernel_comes_first_where_it_is_faster_and_takes_no_more(other, chosen):
    assert fastest([FIRST, other]) == (other if chosen else None)


def test_the_fastest_of_all_that_may_is_taken():
    quick, quicker = Timed(EFFICIENT, 8e-3, 1000, 5000), Timed(CUDNN, 6e-3, 1000, 5000)
    assert fastest([FIRST, quick, quicker]) == quicker
    assert fastest([FIRST, quick, replace(quicker, kept=4000)]) == quick
    assert fastest([FIRST]) is None and fastest([]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_fused_kernels_keep_the_output_and_a_number_a_query_and_math_keeps_scores():
    device = torch.device("cuda", 0)
    dtype = torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    size = (2, 8, 4096, 4096, 40)
    found = {each.kernel: each for each in timed(size, dtype, Meter(device), (FLASH, EFFICIENT, CUDNN, MATH))}
    assert EFFICIENT in found and all(each.seconds > 0 for each in found.values())
    out = 2 * 8 * 4096 * 40 * 2
    fused = [each for kernel, each in found.items() if kernel != MATH]
    assert all(out <= each.kept < 1.5 * out for each in fused)
    assert MATH not in found or found[MATH].kept > 10 * out
    assert fastest([*fused, *(each for kernel, each in found.items() if kernel == MATH)]) != found.get(MATH)
