"""GroupNorm+SiLU, LayerNorm and GEGLU against torch: values, gradients, layouts, and what they keep for backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from trainer.kernels import geglu as kernels_geglu
from trainer.kernels import groupnorm_silu as kernels_groupnorm
from trainer.kernels import layernorm as kernels_layernorm
from trainer.kernels.geglu import geglu
from trainer.kernels.groupnorm_silu import groupnorm_silu
from trainer.kernels.layernorm import layernorm

from trainer.policy import Policy

# relative distance of norms from fp64 that is rounding: outputs are stored once in the dtype
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}


def inputs(*shapes, dtype, device="cpu"):
    torch.manual_seed(0)
    return [(torch.randn(s) * 0.8 + 0.3).to(dtype).to(device).requires_grad_() for s in shapes]


def eager_group_norm(x, w, b, groups, silu):
    y = F.group_norm(x, groups, w, b)
    return F.silu(y) if silu else y


def eager_geglu(x):
    h, g = x.chunk(2, -1)
    return h * F.gelu(g)


CASES = {
    "groupnorm+silu": (
        lambda x, w, b: groupnorm_silu(x, w, b, 4),
        lambda x, w, b: eager_group_norm(x, w, b, 4, True),
        [(3, 12, 7, 5), (12,), (12,)],
    ),
    "groupnorm": (
        lambda x, w, b: groupnorm_silu(x, w, b, 3, silu=False),
        lambda x, w, b: eager_group_norm(x, w, b, 3, False),
        [(1, 6, 11), (6,), (6,)],
    ),
    "layernorm": (layernorm, lambda x, w, b: F.layer_norm(x, (13,), w, b), [(2, 9, 13), (13,), (13,)]),
    "geglu": (geglu, eager_geglu, [(2, 5, 22)]),
}


def values_and_gradients(function, tensors):
    y = function(*tensors)
    torch.manual_seed(1)
    return (y, *torch.autograd.grad(y, tensors, torch.randn(y.shape).to(y.dtype)))


@pytest.mark.parametrize("name", CASES)
def test_in_fp32_values_and_gradients_equal_torch_bit_for_bit(name):
    ours, eager, shapes = CASES[name]
    tensors = inputs(*shapes, dtype=torch.float32)
    for mine, theirs in zip(values_and_gradients(ours, tensors), values_and_gradients(eager, tensors), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_right_within_rounding(name, dtype):
    ours, eager, shapes = CASES[name]
    tensors = inputs(*shapes, dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    for mine, true in zip(values_and_gradients(ours, tensors), values_and_gradients(eager, exact), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - true).norm() <= TOLERANCE[dtype] * true.norm()


@pytest.mark.parametrize("name", CASES)
def test_backward_keeps_the_inputs_and_little_else(name):
    ours, _, shapes = CASES[name]
    tensors = inputs(*shapes, dtype=torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(*tensors)
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    extra = sum(t.nbytes for t in kept if t.untyped_storage().data_ptr() not in known)
    statistics = {"groupnorm+silu": 3 * 4 * 8, "groupnorm": 3 * 8, "layernorm": 2 * 9 * 8, "geglu": 0}
    assert extra == statistics[name]


@pytest.mark.parametrize("name", CASES)
def test_frozen_parameters_get_no_gradient_and_inputs_still_do(name):
    ours, _, shapes = CASES[name]
    tensors = inputs(*shapes, dtype=torch.float32)
    for tensor in tensors[1:]:
        tensor.requires_grad_(False)
    ours(*tensors).sum().backward()
    assert tensors[0].grad is not None and all(tensor.grad is None for tensor in tensors[1:])


def test_channels_last_stays_channels_last_both_ways():
    x, w, b = inputs((2, 8, 6, 5), (8,), (8,), dtype=torch.bfloat16)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = groupnorm_silu(x, w, b, 2)
    (dx,) = torch.autograd.grad(y, x, torch.randn(2, 8, 6, 5).to(torch.bfloat16))
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_meta_tensors_get_the_shapes_layouts_and_dtypes_of_real_ones(name):
    ours, _, shapes = CASES[name]
    real = values_and_gradients(ours, inputs(*shapes, dtype=torch.bfloat16))
    tensors = inputs(*shapes, dtype=torch.bfloat16, device="meta")
    y = ours(*tensors)
    fake = (y, *torch.autograd.grad(y, tensors, torch.empty_like(y)))
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in real]


def test_a_block_with_recompute_kernels_compiles_to_one_graph():
    """Python that the compiler cannot read would split every block, and cost more than compiling gains."""
    from trainer import models
    from trainer.memory import recompute_kernels

    unet = models.family("sd1").tiny().denoiser
    recompute_kernels.apply(unet, Policy(recompute_kernels=True))
    resnet, block = (
        next(part for part in unet.modules() if type(part).__name__ == kind)
        for kind in ("ResnetBlock2D", "BasicTransformerBlock")
    )
    x, time = inputs((2, resnet.in_channels, 4, 4), (2, resnet.time_emb_proj.in_features), dtype=torch.float32)
    tokens, text = inputs(
        (2, 16, block.norm1.normalized_shape[0]), (2, 77, unet.config.cross_attention_dim), dtype=torch.float32
    )
    for part, given in ((resnet, (x, time)), (block, (tokens, None, text))):
        compiled = torch.compile(part._call_impl, fullgraph=True, backend="eager")
        assert torch.equal(compiled(*given), part(*given))


class Seen(TorchDispatchMode):
    """The operators that pass by, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_what_runs_at_once_equals_the_operator_that_others_can_see_bit_for_bit(name):
    ours, _, shapes = CASES[name]
    tensors = inputs(*shapes, dtype=torch.bfloat16)
    at_once = values_and_gradients(ours, tensors)
    with Seen() as seen:
        seen_by_others = values_and_gradients(ours, tensors)
    assert any(word.startswith("trainer.") and "backward" not in word for word in seen.names)
    assert any(word.startswith("trainer.") and "backward" in word for word in seen.names)
    for mine, theirs in zip(at_once, seen_by_others, strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()


@pytest.mark.parametrize("name", CASES)
def test_a_plain_step_takes_no_detour_through_the_dispatcher(name, monkeypatch):
    ours, _, shapes = CASES[name]
    module = {"geglu": kernels_geglu, "layernorm": kernels_layernorm}.get(name, kernels_groupnorm)
    for detour in ("_op", "_op_backward"):
        monkeypatch.setattr(module, detour, None)  # calling it would raise
    values_and_gradients(ours, inputs(*shapes, dtype=torch.bfloat16))
