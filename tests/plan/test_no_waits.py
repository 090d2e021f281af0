"""A step never makes the host wait for the card, looked for on meta tensors; test_on_card.py lets CUDA itself look."""

from __future__ import annotations

import pytest
import torch
from policies import POLICIES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import models
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.plan.pretend import CardAttention


class Crossings(TorchDispatchMode):
    """Fails where an operator takes a tensor of the host's into one on the card: CUDA would copy it and wait. Numbers
    (tensors without dimensions) travel with the launch."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        host = [t for t in given if t.device.type == "cpu" and t.dim() > 0]
        card = [t for t in (*given, *made) if t.device.type == "meta"]
        assert not (host and card), f"{func} brings a tensor of the host's to the card"
        back = [t for t in made if t.device.type == "cpu"]
        assert not (back and any(t.device.type == "meta" for t in given)), f"{func} reads the card"
        return out


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_nothing_crosses_between_host_and_card_inside_a_step(family, policy):
    with torch.device("meta"):
        parts = models.family(family).tiny()
    shapes, objective = rehearse.Shapes((64, 64), accumulation=2), Objective(parts.noise())
    with rehearse.engine(parts, policy, text=True) as engine:
        micro = [rehearse.batch(parts, shapes, True) for _ in range(2)]
        for _ in range(2):  # the second step has host memory already
            with CardAttention(), Crossings():
                rehearse.run_step(engine, micro, objective, shapes.accumulation)


def test_the_looking_glass_sees_what_crosses():
    with pytest.raises(AssertionError, match="host's"), Crossings():
        torch.zeros(3, device="meta")[torch.tensor([1])]
