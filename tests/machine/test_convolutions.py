"""A card whose fp16 convolutions are not numbers is found out before a plan is made for it."""

import pytest
import torch

from trainer.machine import convolutions
from trainer.machine.convolutions import Shape, finite, levels, trial

CPU = torch.device("cpu")
SHAPES = [*levels((8, 16), 2, 8, 4)]


@pytest.fixture(autouse=True)
def benchmark_off():
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.benchmark = False


def test_every_level_of_the_denoiser_has_its_own_convolution():
    assert [Shape(2, 8, 8, 4), Shape(2, 16, 4, 2)] == SHAPES


def test_a_real_convolution_gives_numbers_forward_and_backward():
    assert all(finite(shape, torch.float32, CPU) for shape in SHAPES)
    assert trial(SHAPES, CPU, torch.float32) == "plain"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("spoiled", ["forward", "backward"])
def test_one_number_that_is_none_is_found(spoiled, monkeypatch):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.index_fill(1, torch.tensor([3]), float("nan")) if spoiled == "forward" else out.clone()

        @staticmethod
        def backward(ctx, pull):
            return pull if spoiled == "forward" else pull.index_fill(1, torch.tensor([3]), float("inf"))

    real = torch.nn.functional.conv2d
    monkeypatch.setattr(convolutions.torch.nn.functional, "conv2d", lambda *a, **k: Broken.apply(real(*a, **k)))
    assert not finite(SHAPES[0], torch.float32, CPU)


def test_a_card_that_is_right_in_benchmark_mode_keeps_it_on():
    def tried(shape: Shape, dtype: torch.dtype, device: torch.device) -> bool:
        return torch.backends.cudnn.benchmark or shape.channels == 8

    assert trial(SHAPES, CPU, tried=tried) == "benchmark"
    assert torch.backends.cudnn.benchmark


def test_a_card_that_is_never_right_has_no_16_bit_convolutions_and_its_switches_as_they_were():
    assert trial(SHAPES, CPU, tried=lambda *_: False) == "none"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: its convolutions cannot be tried")
def test_on_the_card_fp16_convolutions_of_sd15_give_numbers_in_some_way():
    way = trial([*levels((320, 640, 1280, 1280), 2, 64, 64)], torch.device("cuda"))
    assert way == "plain" or (way == "benchmark" and torch.cuda.get_device_capability() == (7, 5))
