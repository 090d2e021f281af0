"""The doctor on arithmetic: attention kernels, optimizers and Triton, run on small inputs and compared with plain mathematics."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator

import torch

from trainer.cli.finding import BROKEN, Line, first
from trainer.machine.libraries import fault, remedy, there
from trainer.settings.config import Config

OTHER = "every other --optimizer works"
PACKAGES = {
    "torch_adamw": "torch",
    "bnb_adamw8bit": "bitsandbytes",
    "bnb_paged_adamw8bit": "bitsandbytes",
    "adafactor": "transformers",
    "prodigy": "prodigyopt",
}


def attention(config: Config) -> Iterator[Line]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    device, dtype = place(config)
    size = (1, 256, 2, 40)  # (batch, tokens, heads, SD 1.5's head dimension)

    def sdpa(backend: SDPBackend) -> Callable[..., torch.Tensor]:
        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

        return run

    def xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v)

    ways = {
        "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "sdpa memory-efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
        "sdpa cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "xformers": xformers,
        "math": sdpa(SDPBackend.MATH),
    }
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=source) for _ in range(4)]  # q, k, v and the pull of backward

    def results(way: Callable[..., torch.Tensor], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v, pull = (x.to(device, dtype) for x in inputs)
        for x in (q, k, v):
            x.requires_grad_()
        out = way(q, k, v)
        return [x.float().cpu() for x in (out, *torch.autograd.grad(out, (q, k, v), pull))]

    expected = results(ways["math"], torch.device("cpu"), torch.float32)
    fused = False
    for name, way in ways.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # torch explains at length why a kernel does not apply
                got = results(way, device, dtype)
        except BROKEN as error:
            absent = isinstance(error, ModuleNotFoundError)
            why = "No viable" in str(error) and f"torch has no such kernel for {device.type} in {str(dtype)[6:]}"
            yield Line(name, "off", "not installed" if absent else why or first(error))
            continue
        error = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(got, expected, strict=True))
        right = error < (2e-3 if dtype == torch.float32 else 3e-2)
        fused |= right and name != "math"
        detail = f"relative error {error:.1e} in {str(dtype)[6:]}"
        yield Line(name, "ok" if right else "bad", detail, "" if right else "use another --attention")
    if not fused and device.type == "cuda":
        lost = "none works: attention would store every score"
        yield Line("fused attention", "bad", lost, "install another torch, or xformers")


def optimizers(config: Config) -> Iterator[Line]:
    device, dtype = place(config)
    start, goal = torch.linspace(-1, 1, 4096, device=device), torch.zeros(4096, device=device)

    def ours(weights: str, moments: str) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            from trainer.kernels.adamw_lowbit import State, step_

            def empty(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
                return torch.empty(shape, dtype=kind, device=device)

            compute = dtype if dtype != torch.float32 else torch.bfloat16
            state = State.allocate(4096, weights=weights, moments=moments, compute_dtype=compute, empty=empty)
            state.initialise(start)
            for step in (1, 2, 3):
                step_(state, state.master() - goal, lr=0.05, step=step)
            return state.master()

        return run

    def theirs(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            weight = start.clone().requires_grad_()
            optimizer = make([weight])
            for _ in range(3):
                weight.grad = (weight - goal).detach()
                optimizer.step()
            return weight.detach()

        return run

    def from_module(module: str, name: str, **settings: float) -> Callable[[], torch.Tensor]:
        return theirs(lambda weights: getattr(importlib.import_module(module), name)(weights, **settings))

    ways = {
        "adamw fp32": ours("fp32", "fp32"),
        "adamw 24bit, 8bit": ours("24bit", "8bit"),
        "adamw 16bit_sr, 4bit": ours("16bit_sr", "4bit"),
        "torch_adamw": from_module("torch.optim", "AdamW", lr=0.05),
        "bnb_adamw8bit": from_module("bitsandbytes.optim", "AdamW8bit", lr=0.05),
        "bnb_paged_adamw8bit": from_module("bitsandbytes.optim", "PagedAdamW8bit", lr=0.05),
        "adafactor": from_module(
            "transformers.optimization", "Adafactor", lr=0.05, relative_step=False, scale_parameter=False
        ),
        "prodigy": from_module("prodigyopt", "Prodigy", lr=1.0, d0=0.05),
    }  # fmt: skip
    for name, way in ways.items():
        try:
            with warnings.catch_warnings(record=True) as said:  # a library's reservations belong into its line
                warnings.simplefilter("always")
                moved = way()
        except BROKEN as error:
            yield _broken(name, error)
            continue
        before, after = float((start - goal).norm()), float((moved - goal).norm())
        learned = after < 0.98 * before
        detail = f"distance to the goal {before:.1f} -> {after:.1f}" + (f"; {first(said[0].message)}" if said else "")
        yield Line(name, "ok" if learned else "bad", detail, "" if learned else "use another --optimizer")


def _broken(optimizer: str, error: BaseException) -> Line:
    """The line of an optimizer that raised: its library is broken, or ours is."""
    package = PACKAGES.get(optimizer)
    if package is None:
        fix = "report this; --optimizer torch_adamw works meanwhile"
        return Line(optimizer, "bad", f"does not work here: {first(error)}", fix)
    why = fault(package)
    gone = f"which does not load: {why}" if there(package) else "which is not installed"
    detail = f"needs {package}, {gone}" if why else f"does not work here: {first(error)}"
    return Line(optimizer, "lost", detail, remedy(package), OTHER)


def kernels(config: Config) -> Iterator[Line]:
    device, dtype = place(config)
    if device.type != "cuda":
        yield Line("Triton", "off", "no CUDA card: every kernel runs as its reference, in plain torch")
        return
    if why := fault("triton"):
        without = "every kernel runs as its reference, slower and with more memory"
        yield Line("Triton", "lost", f"does not load: {why}", remedy("triton"), without)
        return
    from trainer.kernels import choice
    from trainer.kernels.groupnorm_silu import groupnorm_silu

    if reason := choice.trial(torch.cuda.current_device()):
        without = "plain torch works in the kernels' place, slower and with more memory"
        yield Line("Triton", "lost", reason, choice.remedy(reason), without)
        return
    source = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn(2, 64, 8, 8, generator=source), torch.rand(64), torch.rand(64)
    try:
        got = groupnorm_silu(x.to(device, dtype), weight.to(device, dtype), bias.to(device, dtype), 32)
    except BROKEN as error:
        yield Line("Triton", "bad", f"GroupNorm with SiLU does not compile: {first(error)}", "report this line")
        return
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, weight, bias))
    error = float((got.float().cpu() - expected).norm() / expected.norm())
    yield Line("Triton", "ok" if error < 3e-2 else "bad", f"GroupNorm with SiLU compiled, relative error {error:.1e}")


def place(config: Config) -> tuple[torch.device, torch.dtype]:
    """(device, dtype) that a run would compute with here."""
    cuda = torch.cuda.is_available() and config.run.device != "cpu"
    if not cuda:
        return torch.device("cpu"), torch.float32
    capability = torch.cuda.get_device_capability(torch.cuda.current_device())
    return torch.device("cuda"), torch.bfloat16 if capability[0] >= 8 else torch.float16
