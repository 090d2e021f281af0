"""Attention without its score matrix: the flash, memory-efficient or cuDNN kernel behind torch's SDPA, or xformers.

The plain path ("math") stores softmax(q k^T) for backward, 512 MiB a layer at SD 1.5's first level, and torch takes it
silently whenever no fused kernel accepts the inputs. So the kernels to choose from are named here, on CUDA without
math, and before training `verify` compares the chosen one with math on the run's real shapes, gradients included.

Saves: SD 1.5 512 px pair 5470 -> 2182 MiB of activations and gradients (computed).
Costs: nothing; it is also faster. Combines with everything. attention = math is for comparisons. With auto the kernels are
timed on a card for the run's largest shape, and the fastest of those that keep no more than the plan counts comes first.
Exact: within rounding of the dtype (the order of sums differs); gradients of none of them are deterministic on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from trainer.errors import ConfigError
from trainer.machine import attending, libraries
from trainer.machine.probe import Meter
from trainer.policy import Policy
from trainer.settings.config import Memory

ORDER = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
}
SAMPLE = 256  # queries that are compared
# relative distance (norms) from fp32 math that rounding explains: about 4 units of the dtype; fp32 allows for TF32
TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Shape:
    """One kind of attention call: queries (batch, heads, queries, head_dim) against `keys` keys. masked: rows have texts of
    different lengths, so that some keys are nobody's."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    masked: bool = False

    def __str__(self) -> str:
        words = f"{self.queries} x {self.keys} tokens, {self.heads} heads of {self.head_dim}"
        return words + " and a mask" * self.masked

    @property
    def scores(self) -> int:
        return self.batch * self.heads * self.queries * self.keys

    def mask(self, device: torch.device) -> Tensor | None:
        """(batch, 1, 1, keys), True where a key counts: all of them but an eighth at the end, or None."""
        if not self.masked:
            return None
        counts = torch.arange(self.keys, device=device) < self.keys - self.keys // 8
        return counts.expand(self.batch, 1, 1, self.keys)


FIELDS = ("attention",)


def begin(wanted: Memory, device: str) -> dict[str, Any]:
    return {"attention": "sdpa" if wanted.attention == "auto" else wanted.attention}


def enabled(policy: Policy) -> bool:
    return policy.attention != "math"


def check(policy: Policy) -> None:
    resolve(policy.attention)


def resolve(name: str) -> str:
    """auto -> sdpa; refuses xformers where it is not installed."""
    if name == "xformers" and _xformers() is None:
        raise libraries.lacking(
            "--attention xformers needs", "xformers", "leave --attention out: torch's own kernels are as good"
        )
    return "sdpa" if name == "auto" else name


def apply(denoiser: nn.Module, policy: Policy, device: torch.device | str = "cpu") -> Callable[[], None] | None:
    """Give every attention layer of `denoiser` our processor; on CUDA forbid the math path. Returns the undo."""
    attention, model = resolve(policy.attention), _diffusers(denoiser)
    if not _has_levels(model):
        return _as_it_is(attention, torch.device(device))
    before = model.attn_processors
    model.set_attn_processor(Processor(attention))
    restore_flags = _forbid_math() if attention == "sdpa" and torch.device(device).type == "cuda" else None

    def undo() -> None:
        model.set_attn_processor(dict(before))
        if restore_flags is not None:
            restore_flags()

    return undo


def _has_levels(model: Any) -> bool:
    """Whether it is a UNet. Transformers' own processors call torch's SDPA, each with its own norms, rotations and joints."""
    return hasattr(model, "down_blocks")


def _as_it_is(attention: str, device: torch.device) -> Callable[[], None] | None:
    """A transformer's attention, with the kernels that torch has for it."""
    if attention != "sdpa":
        raise ConfigError(
            f"--attention {attention} exchanges the attention of UNets; a transformer has one of its own, by torch's kernels",
            "leave --attention out",
        )
    return _forbid_math() if device.type == "cuda" else None


class Processor:
    """What diffusers calls to run an Attention layer (self or cross) of a UNet: projections and one fused kernel."""

    def __init__(self, attention: str):
        self.attention = attention

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *_,
        **__,
    ) -> Tensor:
        assert attention_mask is None and attn.group_norm is None and not attn.residual_connection, (
            "not an attention of a UNet's transformer"
        )
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )  # (B, heads, tokens, d)
        out = attend(query, key, value, self.attention)
        out = out.transpose(1, 2).flatten(2)  # (B, tokens, C)
        out = attn.to_out[1](attn.to_out[0](out))
        return out if attn.rescale_output_factor == 1.0 else out / attn.rescale_output_factor


def attend(query: Tensor, key: Tensor, value: Tensor, attention: str = "sdpa", mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt d) v; all (B, heads, tokens, d); mask: True where a key counts, for torch's own kernels"""
    if attention == "xformers" and query.is_cuda:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        kernels = _xformers()
        assert kernels is not None, "resolve refuses xformers where it is not installed"
        return kernels.memory_efficient_attention(query, key, value).transpose(1, 2)
    if attention == "math":
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(query, key, value, mask)
    return scaled_dot_product_attention(query, key, value, mask)  # on meta a simulation takes over here


def choose(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[list[SDPBackend], str]:
    """The order in which kernels are taken for a run whose largest call is `shape`, and in words why it is not ORDER."""
    size = (shape.batch, shape.heads, shape.queries, shape.keys, shape.head_dim)
    found = [*attending.timed(size, dtype, Meter(device), ORDER, shape.mask(device))]
    best = attending.fastest(found)
    if best is None:
        return ORDER, ""
    times = found[0].seconds / best.seconds
    words = f"attention: {NAMES[best.kernel]} comes first, {times:.2f} times as fast here as {NAMES[found[0].kernel]} for {shape}"
    return [best.kernel, *(kernel for kernel in ORDER if kernel != best.kernel)], words


def prefer(order: list[SDPBackend]) -> None:
    """From now on kernels are taken in this order, by all SDPA calls of the process."""
    torch._C._set_sdp_priority_order([kernel.value for kernel in (*order, SDPBackend.MATH)])


def settle(kinds: list[Shape], dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> list[str]:
    """As `verify`, largest first, but the fastest kernel comes first from now on, where it is right as well."""
    order, why = choose(kinds[0], dtype, device) if kinds and attention == "sdpa" else (ORDER, "")
    if not why:
        return verify(kinds, dtype, device, attention)
    try:
        facts = verify(kinds, dtype, device, attention, order)
    except ConfigError:  # fast and wrong
        return verify(kinds, dtype, device, attention)
    prefer(order)
    return [*facts, why]


def verify(
    kinds: Iterable[Shape],
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str = "sdpa",
    order: list[SDPBackend] = ORDER,
) -> list[str]:
    """Run the chosen kernel on real shapes, both ways, and compare one head with math in fp32, for SAMPLE of its queries:
    all scores of SD 2 at 768 px would be 340 MB a tensor, beside a budget. -> facts for the log.

    Raises a ConfigError if only the math path would take a shape on CUDA, or if values or gradients are wrong.
    """
    attention, device, facts = resolve(attention), torch.device(device), []
    if device.type == "meta":
        return facts
    restore_flags = _forbid_math(order) if attention == "sdpa" and device.type == "cuda" else None
    try:
        for shape in kinds:
            facts.append(_verify_one(shape, dtype, device, attention))
    finally:
        if restore_flags is not None:
            restore_flags()
    return facts


def kernel_for(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> str:
    """The name of the kernel that SDPA takes for these inputs: flash, memory-efficient, cuDNN or math."""
    choice = SDPBackend(torch.ops.aten._fused_sdp_choice(query, key, value, mask))
    return NAMES.get(choice, choice.name.lower())


def _verify_one(shape: Shape, dtype: torch.dtype, device: torch.device, attention: str) -> str:
    source = torch.Generator(device).manual_seed(0)

    def draw(tokens: int) -> Tensor:
        x = torch.randn(shape.batch, tokens, shape.heads, shape.head_dim, generator=source, device=device, dtype=dtype)
        return x.transpose(1, 2).requires_grad_()

    query, key, value, pull = draw(shape.queries), draw(shape.keys), draw(shape.keys), draw(shape.queries).detach()
    some = slice(None, None, -(-shape.queries // SAMPLE))
    aside = torch.ones(shape.queries, dtype=torch.bool, device=device)
    aside[some] = False
    pull.masked_fill_(aside[:, None], 0)  # the other queries send no gradient to keys and values
    mask = shape.mask(device)
    kernel = kernel_for(query, key, value, mask) if attention == "sdpa" else attention
    # with math forbidden torch reports "error" where only math is left
    if attention == "sdpa" and device.type == "cuda" and kernel not in ("flash", "memory-efficient", "cuDNN"):
        raise ConfigError(
            f"no fused attention kernel takes {shape} in {dtype} on this card; the math path would store every score.",
            "Use --mixed_precision bf16 or fp16, or --attention xformers; --attention math accepts the memory it costs.",
        )
    out = attend(query, key, value, attention, mask)
    results = (out, *torch.autograd.grad(out, (query, key, value), pull))
    parts = (some, slice(None), slice(None))
    head = [
        x.detach()[:1, :1, part].float().requires_grad_() for x, part in zip((query, key, value), parts, strict=True)
    ]
    truth = attend(head[0], head[1], head[2], "math", None if mask is None else mask[:1])
    expected = (truth, *torch.autograd.grad(truth, head, pull[:1, :1, some].float()))
    errors = [
        float((mine.detach()[:1, :1, part].float() - true.detach()).norm() / true.detach().norm())
        for mine, true, part in zip(results, expected, (some, *parts), strict=True)
    ]
    worst = max(errors)
    if not worst <= TOLERANCE[dtype]:  # also catches NaN
        raise ConfigError(
            f"the {kernel} attention kernel is wrong for {shape} in {dtype}: relative error {worst:.2e}.",
            "Try --attention xformers or --attention math, and another version of torch or of the driver.",
        )
    return f"attention {shape}: {kernel}, within {worst:.1e} of math in fp32, gradients included"


def _forbid_math(order: list[SDPBackend] = ORDER) -> Callable[[], None]:
    """Fused kernels only, in this order, for all SDPA calls of the process. Returns the undo."""
    flags = torch.backends.cuda
    switches = {
        flags.enable_math_sdp: flags.math_sdp_enabled(),
        flags.enable_flash_sdp: flags.flash_sdp_enabled(),
        flags.enable_mem_efficient_sdp: flags.mem_efficient_sdp_enabled(),
        flags.enable_cudnn_sdp: flags.cudnn_sdp_enabled(),
    }
    before = torch._C._get_sdp_priority_order()
    for switch in switches:
        switch(switch is not flags.enable_math_sdp)
    prefer(order)

    def undo() -> None:
        for switch, value in switches.items():
            switch(value)
        torch._C._set_sdp_priority_order(before)

    return undo


def _diffusers(denoiser: nn.Module) -> Any:
    """The same object, as the model of diffusers that it is: what it offers beyond a module, this wing knows by name only."""
    return denoiser


def _xformers() -> ModuleType | None:
    try:
        import xformers.ops
    except (ImportError, OSError, RuntimeError):  # a wheel for another torch fails in any of these ways
        return None
    return xformers.ops
