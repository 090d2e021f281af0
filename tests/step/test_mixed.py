"""Mixed precision on a card and its likeness in a plan cast the same values, so that a plan counts the same copies."""

import pytest
import torch
from torch.nn import functional as F

from trainer.policy import Policy
from trainer.step.mixed import autocast

MIXED = Policy(weights="fp32", compute=torch.bfloat16)
CPU, META = torch.device("cpu"), torch.device("meta")


def made(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


PRODUCTS = {
    "linear": lambda d: F.linear(made(d, 2, 8), made(d, 4, 8), made(d, 4)),
    "convolution": lambda d: F.conv2d(made(d, 1, 3, 5, 5), made(d, 4, 3, 3, 3), made(d, 4)),
    "matmul": lambda d: torch.matmul(made(d, 2, 8), made(d, 8, 4)),
    "@": lambda d: made(d, 2, 8) @ made(d, 8, 4),
    "bmm": lambda d: torch.bmm(made(d, 2, 3, 4), made(d, 2, 4, 5)),
    "baddbmm": lambda d: torch.baddbmm(made(d, 2, 3, 5), made(d, 2, 3, 4), made(d, 2, 4, 5)),
    "attention": lambda d: F.scaled_dot_product_attention(
        made(d, 1, 2, 4, 8), made(d, 1, 2, 4, 8), made(d, 1, 2, 4, 8)
    ),
}
NORMS = {
    "group norm": lambda d: F.group_norm(made(d, 1, 8, 4, dtype=torch.bfloat16), 2),
    "layer norm": lambda d: F.layer_norm(made(d, 2, 8, dtype=torch.bfloat16), (8,)),
    "softmax": lambda d: made(d, 2, 8, dtype=torch.bfloat16).softmax(-1),
}


@pytest.mark.parametrize("call", PRODUCTS.values(), ids=PRODUCTS)
def test_products_run_in_16_bits_in_a_plan_as_under_torchs_own_autocast(call):
    with autocast(MIXED, CPU):
        real = call(CPU)
    with autocast(MIXED, META):
        planned = call(META)
    assert planned.dtype == real.dtype == torch.bfloat16 and planned.shape == real.shape


@pytest.mark.parametrize("call", NORMS.values(), ids=NORMS)
def test_norms_of_16_bit_values_run_in_fp32_in_a_plan_as_they_do_on_a_card(call):
    """torch's autocast for the CPU leaves some of them in 16 bits; a plan stands for a card."""
    with autocast(MIXED, META):
        assert call(META).dtype == torch.float32


def test_indices_and_what_is_neither_product_nor_norm_keep_their_type():
    with autocast(MIXED, META):
        assert (made(META, 2) + made(META, 2)).dtype == torch.float32
        assert made(META, 2, dtype=torch.int64).add(1).dtype == torch.int64
        assert F.embedding(made(META, 2, dtype=torch.int64), made(META, 3, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    "policy", [Policy(weights="fp32", compute=torch.float32), Policy(weights="24bit", compute=torch.bfloat16)]
)
def test_weights_that_already_have_the_type_of_the_arithmetic_need_nothing(policy):
    for device in (CPU, META):
        with autocast(policy, device):
            assert F.linear(made(device, 2, 8), made(device, 4, 8)).dtype == torch.float32
