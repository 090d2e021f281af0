"""Recompute kernels: norms, activations and gates that remember their input and nothing else.

Eager mode keeps the output of every norm for SiLU, that of SiLU or GEGLU for the matrix product behind it, and more in
between; backward can make all of these again from the input without a matrix product. Only the `forward` of the model's
own modules is replaced, so parameters, names, state dicts and adapters stay as they are.

Saves: about 36 % of the activations of a step without checkpointing (SD 1.5 512 px pair 1817 -> 1166 MiB, computed);
       of the smallest plan of FLUX.2 klein, whose peak is one block's backward, 4.32 -> 3.56 GiB (computed).
Costs: elementwise work in backward, less than the memory traffic it removes on CUDA; nothing to gain, and nothing lost,
       under checkpointing = blocks beyond the largest unit's peak. Combines with everything.
Exact: yes in fp32 on the CPU, bit for bit; in 16 bits closer to fp32 than eager mode, which rounds in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _autograd

from trainer.kernels.geglu import geglu
from trainer.kernels.groupnorm_silu import groupnorm_silu
from trainer.kernels.layernorm import layernorm
from trainer.kernels.rmsnorm import rmsnorm
from trainer.kernels.swiglu import swiglu
from trainer.policy import Policy
from trainer.settings.config import Memory

FIELDS = ("recompute_kernels",)


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    return {"recompute_kernels": {"on": True, "off": False}.get(wanted.recompute_kernels, device == "cuda")}


def enabled(policy: Policy) -> bool:
    return policy.recompute_kernels


def check(policy: Policy) -> None:
    """Nothing forbids it: without Triton the same mathematics runs in torch, and saves the same bytes."""


def apply(module: nn.Module, policy: Policy, device: torch.device | str = "cpu") -> Callable[[], None] | None:
    """Swap what is known inside `module` (a denoiser, or any of its parts). Returns the undo."""
    if not enabled(policy):
        return None
    swapped: list[nn.Module] = []

    def swap(part: nn.Module, forward: Callable) -> None:
        if "forward" not in part.__dict__:
            part.forward = forward
            swapped.append(part)

    model: Any = module  # of diffusers, as are the blocks inside: known here by their names
    for part in module.modules():
        kind = type(part).__name__
        block: Any = part
        if kind == "ResnetBlock2D" and _plain_resnet(block):
            swap(block.norm1, partial(_group_norm, block.norm1, True))
            swap(block.norm2, partial(_group_norm, block.norm2, True))
            swap(part, partial(_remade, partial(_resnet, block)))
        elif kind == "GEGLU":
            swap(part, partial(_geglu, part))
        elif kind == "Flux2SwiGLU":
            swap(part, swiglu)
        elif isinstance(part, nn.RMSNorm) and part.weight is not None and part.weight.dim() == 1:
            swap(part, partial(_rms_norm, part))
        elif (
            isinstance(part, nn.LayerNorm)
            and part.elementwise_affine
            and part.bias is not None
            and len(part.normalized_shape) == 1
        ):
            swap(part, partial(_layer_norm, part))
    if isinstance(getattr(model, "conv_norm_out", None), nn.GroupNorm) and isinstance(model.conv_act, nn.SiLU):
        swap(model.conv_norm_out, partial(_group_norm, model.conv_norm_out, True))
        swap(model.conv_act, _pass)
    for part in module.modules():
        if isinstance(part, nn.GroupNorm) and part.affine:
            swap(part, partial(_group_norm, part, False))  # those with no activation behind them
        elif type(part).__name__ == "BasicTransformerBlock":
            swap(part, partial(_remade, part.forward))

    def undo() -> None:
        for part in swapped:
            del part.forward
        swapped.clear()

    return undo


def _plain_resnet(block: Any) -> bool:
    return block.time_embedding_norm == "default" and isinstance(block.nonlinearity, nn.SiLU)


def _resnet(block: Any, hidden: Tensor, temb: Tensor | None, *_, **__) -> Tensor:
    """ResnetBlock2D.forward of diffusers, whose norms now bring the activation along."""
    inner, shortcut = block.norm1(hidden), hidden
    resample = block.upsample if block.upsample is not None else block.downsample
    if resample is not None:
        inner, shortcut = resample(inner), resample(shortcut)
    inner = block.conv1(inner)
    if temb is not None and block.time_emb_proj is not None:
        if not block.skip_time_act:
            temb = block.nonlinearity(temb)
        inner = inner + block.time_emb_proj(temb)[:, :, None, None]
    inner = block.conv2(block.dropout(block.norm2(inner)))
    if block.conv_shortcut is not None:
        shortcut = block.conv_shortcut(shortcut)
    out = shortcut + inner  # (B, C, H, W)
    return out if block.output_scale_factor == 1.0 else out / block.output_scale_factor


class _Kitchen(threading.local):
    """Recipes of the tensors made inside the block that is running: place of the storage -> (tensor, how to make it)."""

    recipes: dict[int, tuple[Tensor, Callable[[], Tensor]]] | None = None


_kitchen = _Kitchen()


def _remade(forward: Callable, *args, **kwargs):
    """Run a block; where autograd would keep what a norm or gate made (for the weight gradient of the matrix product
    behind it), keep the recipe instead: backward makes the tensor again from the input, which is kept anyway."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # the compiler decides itself, and asks first
        return forward(*args, **kwargs)
    if _kitchen.recipes is not None or _autograd._top_saved_tensors_default_hooks(True) is not None:
        return forward(*args, **kwargs)  # an outer block of ours, or selective checkpointing, decides what is kept
    recipes = _kitchen.recipes = {}

    def pack(tensor: Tensor):
        made = recipes.get(tensor.untyped_storage()._cdata)
        return tensor if made is None else (made[1], tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(kept):
        if isinstance(kept, Tensor):
            return kept
        make, shape, stride, offset = kept
        with torch.no_grad():
            return make().as_strided(shape, stride, offset)

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return forward(*args, **kwargs)
    finally:
        _kitchen.recipes = None
        recipes.clear()  # autograd keeps `pack`, and with it this table, as long as the graph


def _made(output: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() and _kitchen.recipes is not None:
        inputs = tuple(tensor.detach() for tensor in inputs)
        # the tensor stays in the table while the block runs, so that no other can take the place of its storage
        _kitchen.recipes[output.untyped_storage()._cdata] = (output.detach(), partial(make, *inputs))
    return output


def _group_norm(norm: nn.GroupNorm, silu: bool, hidden: Tensor) -> Tensor:
    def make(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return groupnorm_silu(hidden, weight, bias, norm.num_groups, norm.eps, silu)

    return _made(make(hidden, norm.weight, norm.bias), make, hidden, norm.weight, norm.bias)


def _layer_norm(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    def make(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layernorm(hidden, weight, bias, norm.eps)

    return _made(make(hidden, norm.weight, norm.bias), make, hidden, norm.weight, norm.bias)


def _rms_norm(norm: nn.RMSNorm, hidden: Tensor) -> Tensor:
    return rmsnorm(hidden, norm.weight, norm.eps)


def _geglu(gate: Any, hidden: Tensor, *_, **__) -> Tensor:
    projected = gate.proj(hidden)
    return _made(geglu(projected), geglu, projected)


def _pass(hidden: Tensor) -> Tensor:
    return hidden
