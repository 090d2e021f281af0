"""Pinned host memory in slabs. Without a card nothing can be pinned, so these run over ordinary memory, which is what a
run falls back to where the system refuses more."""

from __future__ import annotations

import gc

import pytest
import torch

from trainer.machine import host

pytestmark = [
    pytest.mark.filterwarnings("ignore:No more memory could be pinned"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there memory can be pinned"),
]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_before():
    gc.collect()
    host._slabs.clear()


def held() -> int:
    return sum(storage.nbytes() for slab, _ in host._slabs if (storage := slab()) is not None)


def test_tensors_share_slabs_without_sharing_bytes():
    shapes = [(3, 5), (100_001,), 7, (2, 3, 4, 5), (MIB,)]
    made = [host.empty(s, d, "cuda") for s in shapes for d in (torch.uint8, torch.bfloat16, torch.float32)]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(made))
    assert all(tensor.data_ptr() % 64 == 0 and tensor.device.type == "cpu" for tensor in made)
    assert made[0].shape == (3, 5) and made[0].dtype == torch.uint8


def test_awkward_sizes_take_little_more_than_they_hold():
    sizes = [(k % 7 + 1) * MIB + MIB // 2 + 13 for k in range(240)]  # powers of two take 1.34 times as much
    made = [host.empty(size, torch.uint8, "cuda") for size in sizes]
    assert sum(tensor.nbytes for tensor in made) <= held() < 1.15 * sum(sizes)


def test_a_slab_is_given_back_with_its_last_tensor():
    made = [host.empty(MIB, torch.uint8, "cuda") for _ in range(3)]
    part = made[0][:10].view(torch.int16)
    del made
    gc.collect()
    assert held() > 0
    del part
    gc.collect()
    assert held() == 0


def test_an_empty_tensor_needs_no_room():
    host.empty(MIB, torch.uint8, "cuda")
    assert host.empty(0, torch.uint8, "cuda").numel() == 0


@pytest.mark.filterwarnings("default:No more memory could be pinned")
def test_where_nothing_can_be_pinned_ordinary_memory_serves_and_it_is_said():
    with pytest.warns(UserWarning, match="ordinary memory, slower"):
        assert host.empty((4, 4), torch.float32, "cuda").fill_(1).sum() == 16
