"""A visit changes where and how a module computes, and nothing that stays."""

import pytest
import torch
from torch import nn

from trainer.machine.visit import visiting
from trainer.models import SD1
from trainer.step.engine import Engine, Policy


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def test_a_visit_in_another_precision_leaves_the_very_same_tensors_behind():
    module = SD1.tiny().text_encoders[0].half()
    homes = [(t.data_ptr(), t.dtype, t.clone()) for t in tensors(module)]
    with visiting(module, "cpu", torch.bfloat16) as guest:
        assert guest is module
        assert {t.dtype for t in tensors(module) if t.is_floating_point()} == {torch.bfloat16}
    assert all(
        (t.data_ptr(), t.dtype) == (p, d) and torch.equal(t, v)
        for t, (p, d, v) in zip(tensors(module), homes, strict=True)
    )


def test_a_visitor_computes_in_fp32_unless_asked_otherwise():
    module = nn.Linear(4, 4)
    half = nn.Linear(4, 4).half()
    half.load_state_dict(module.state_dict())
    exact = nn.Linear(4, 4)
    exact.load_state_dict(half.state_dict())
    with visiting(half, "cpu") as guest:
        assert torch.equal(guest(torch.ones(4)), exact(torch.ones(4)))
    assert half.weight.dtype == torch.float16


def test_a_visit_that_fails_leaves_the_module_as_it_was():
    module = nn.Linear(4, 4)
    before = module.weight.data_ptr()
    with pytest.raises(RuntimeError), visiting(module, "cpu", torch.float16):
        raise RuntimeError
    assert module.weight.dtype == torch.float32 and module.weight.data_ptr() == before


def test_weights_that_an_engine_holds_are_still_its_own_after_a_visit():
    parts = SD1.tiny()
    engine = Engine(parts.family.units(parts), Policy(), "cpu")
    with visiting(parts.denoiser, "cpu", torch.bfloat16):
        pass
    engine.load_master({name: torch.zeros_like(value) for name, value in engine.master()})
    assert not any(parameter.any() for parameter in parts.denoiser.parameters())
