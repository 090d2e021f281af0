"""RMSNorm that remembers its input alone: eager mode's gradients, in fp32 to the bit, in 16 bits within rounding."""

import pytest
import torch
from torch.nn.functional import rms_norm
from trainer.kernels.rmsnorm import rmsnorm

EPS = 1e-6


def given(dtype: torch.dtype, learns: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 21, 3, 8).to(dtype).requires_grad_()
    return x, (torch.rand(8) + 0.5).to(dtype).requires_grad_(learns)


def both(x, weight):
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    asked = [each for each in (x, weight) if each.requires_grad]
    for y in (rmsnorm(x, weight, EPS), rms_norm(x, weight.shape, weight, EPS)):
        yield y, *torch.autograd.grad(y, asked, dy)


@pytest.mark.parametrize("learns", [True, False])
def test_in_fp32_values_and_gradients_equal_eager_mode_bit_for_bit(learns):
    ours, theirs = both(*given(torch.float32, learns))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_only_the_order_of_the_weights_sum_differs(dtype):
    (y, dx, dweight), (y_, dx_, dweight_) = both(*given(dtype))
    assert torch.equal(y, y_) and torch.equal(dx, dx_) and dweight.dtype == dtype
    assert (dweight.double() - dweight_.double()).norm() <= 1e-2 * dweight_.double().norm()


def test_it_keeps_what_it_norms_and_nothing_else():
    x, weight = given(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rmsnorm(x, weight, EPS)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}


def test_it_compiles_to_one_graph():
    x, weight = given(torch.float32)
    compiled = torch.compile(lambda x, weight: rmsnorm(x, weight, EPS), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, weight), rms_norm(x, weight.shape, weight, EPS))
