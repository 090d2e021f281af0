"""What a step's gradients cost the host: the operators that a step of one micro-batch must not run."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_unet import Model, take_step
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.memory import attention, recompute_kernels
from trainer.models import SD1
from trainer.step.engine import Engine, Policy
from trainer.step.gradients import Gradients


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operators(count: int) -> Counter:
    engine = Engine(Model().units(), Policy(), "cpu")
    take_step(engine, 0, count)
    with Counted() as counted:
        take_step(engine, 1, count)
    return counted.operators


def test_one_micro_batch_adds_no_gradient_to_zeros_and_copies_each_unit_at_once():
    one, two = operators(1), operators(2)
    units, parameters = len(Model().units()), len(list(Model().parameters()))
    assert one["_foreach_copy_"] == units and two["_foreach_copy_"] == 0
    # the second micro-batch pays an addition for each parameter, of each of its gradients
    assert two["add_"] + two["add"] - one["add_"] - one["add"] >= parameters - 2


def test_a_gradient_that_never_came_is_zeros_and_so_is_what_lies_between_parameters():
    engine = Engine(Model().units(), Policy(), "cpu")
    holding = next(h for h in engine.holdings if h.has_gaps and len(h.trained) > 1)
    first = holding.trained[0]
    first.parameter.grad = torch.ones_like(first.parameter)
    found = Gradients.gathered(holding, torch.device("cpu"))
    assert found.flat.sum() == first.parameter.numel() and found.norms()[1:].count_nonzero() == 0


@pytest.mark.parametrize("apply", [attention.apply, recompute_kernels.apply], ids=["attention", "resnets"])
def test_nothing_is_divided_by_one(apply):
    unet = SD1.tiny().unet
    apply(unet, Policy(recompute_kernels=True))
    with torch.no_grad(), Counted() as counted:
        unet(torch.randn(1, 4, 16, 16), torch.tensor([3]), torch.randn(1, 77, unet.config.cross_attention_dim))
    with torch.no_grad(), Counted() as plain:
        SD1.tiny().unet(
            torch.randn(1, 4, 16, 16), torch.tensor([3]), torch.randn(1, 77, unet.config.cross_attention_dim)
        )
    assert counted.operators["div"] < plain.operators["div"]
