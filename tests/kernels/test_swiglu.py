"""SwiGLU that remembers its input alone: eager mode's values and gradients, bit for bit, in every precision."""

import pytest
import torch
from torch.nn.functional import silu
from trainer.kernels.swiglu import swiglu


def eager(x):
    half = x.shape[-1] // 2
    return silu(x[..., :half]) * x[..., half:]


def given(dtype: torch.dtype) -> torch.Tensor:
    """A part of a projection's output, as FLUX.2's single blocks have it."""
    torch.manual_seed(0)
    return torch.randn(2, 11, 30).to(dtype)[..., 8:].requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_equal_eager_mode_bit_for_bit(dtype):
    x = given(dtype)
    dy = torch.randn(2, 11, 11).to(dtype)
    ours, theirs = ((y, *torch.autograd.grad(y, x, dy)) for y in (swiglu(x), eager(x)))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_keeps_its_input_and_nothing_else():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = given(torch.bfloat16)
        swiglu(x)
    assert {t.untyped_storage().data_ptr() for t in kept} == {x.untyped_storage().data_ptr()}


def test_it_compiles_to_one_graph():
    x = given(torch.float32)
    assert torch.equal(torch.compile(swiglu, fullgraph=True, backend="eager")(x), eager(x))
