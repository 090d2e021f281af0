"""Weights in their file: pages come and go, and nothing that somebody wrote is ever lost."""

import sys

import pytest
import torch
from safetensors import safe_open

from trainer.files.mapped import PAGE, Stored, forget
from trainer.files.safetensors_stream import Writer

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system takes pages back itself")
COUNT, SIZE = 8, 2**22  # 8 tensors of 16 MiB


def resident_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mapped") / "x.safetensors"
    with Writer(path, {f"t{i}": (SIZE,) for i in range(COUNT)}, torch.float32, {}) as opened:
        for i in range(COUNT):
            opened.write(f"t{i}", torch.full((SIZE,), float(i)))
    return path


@linux
def test_pages_that_were_read_can_be_given_back_and_are_read_again(file):
    with safe_open(file, "pt") as opened:
        tensors = [opened.get_tensor(f"t{i}") for i in range(COUNT)]
    before = resident_mib()
    assert [float(tensor.sum()) / SIZE for tensor in tensors] == list(range(COUNT))
    assert resident_mib() - before > 0.8 * COUNT * 16
    forget(*tensors)
    assert resident_mib() - before < 0.2 * COUNT * 16
    assert [float(tensor.sum()) / SIZE for tensor in tensors] == list(range(COUNT))


def test_what_somebody_wrote_stays(file):
    with safe_open(file, "pt") as opened:
        tensor, other = opened.get_tensor("t1"), opened.get_tensor("t2")
    tensor[3 * PAGE] = 7.0
    other.detach().mul_(2)
    forget(tensor, other)
    assert tensor[3 * PAGE] == 7.0 and tensor[0] == 1.0
    assert bool((other == 4.0).all())


def test_memory_that_is_no_file_s_is_left_alone():
    large, small, whole = torch.arange(SIZE), torch.arange(3), torch.zeros(SIZE)
    expanded = torch.ones(1).expand(SIZE)  # says it is larger than it is
    forget(large, small, whole, torch.empty(0), torch.empty(3, device="meta"), expanded)
    assert torch.equal(large, torch.arange(SIZE)) and small.tolist() == [0, 1, 2] and not whole.any()
    assert float(expanded.sum()) == SIZE


@linux
def test_going_through_a_file_takes_the_memory_of_one_tensor(file):
    stored = Stored(file)
    before = resident_mib()
    for i, name in enumerate(stored):
        assert float(stored[name].sum()) / SIZE == i
        assert resident_mib() - before < 3 * 16
    assert len(stored) == COUNT and "t0" in stored and "nothing" not in stored
