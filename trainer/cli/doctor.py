"""`python -m trainer doctor`: what is installed and what really works here, each failing line with its fix.

Versions are compared with the ones the project asks for; attention kernels and optimizers are not looked up but run,
forward and backward, because an installed package that crashes in its first step is the usual surprise. Exit code 1
only where something that training needs is broken.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer.machine.versions import asked
from trainer.settings.config import Config

IMPORTS = {"pillow": "PIL", "pillow-heif": "pillow_heif", "huggingface-hub": "huggingface_hub"}
EXTRAS = {
    "xformers": "another attention library",
    "pillow-heif": "HEIC photos",
    "tensorboard": "--report_to tensorboard",
    "wandb": "--report_to wandb",
}
BROKEN = (Exception,)  # a bad install shows itself in many ways: compilers have errors of their own


@dataclass(frozen=True)
class Line:
    """One finding. state: ok | off (optional and absent) | bad (something needed does not work)"""

    name: str
    state: str
    detail: str
    fix: str = ""


def main(config: Config) -> int:
    lines: list[Line] = []
    parts = {
        "Installed": versions,
        "Card": card,
        "Attention, forward and backward": attention,
        "Optimizers, three real steps": optimizers,
        "Kernels": kernels,
        "Disk": disk,
    }
    for title, checks in parts.items():
        print(title)
        for line in checks(config):
            lines.append(line)
            print(f"  {_mark(line.state)} {line.name:<22} {line.detail}", flush=True)
            if line.fix:
                print(f"      fix: {line.fix}", flush=True)
    bad = [line.name for line in lines if line.state == "bad"]
    print(f"\nBroken: {', '.join(bad)}" if bad else "\nEverything that training needs works here.")
    return 1 if bad else 0


def versions(config: Config) -> Iterator[Line]:
    yield Line("python", "ok", platform.python_version())
    needed = asked()
    extras = {name: requirement for name, requirement in asked(extras=True).items() if name in EXTRAS}
    for name, requirement in (needed | extras).items():
        optional = name not in needed
        wanted = f" (needs {requirement.specifier})" if requirement.specifier else ""
        fix = f"pip install '{name}{requirement.specifier}'"
        try:
            version = metadata.version(name)
            importlib.import_module(IMPORTS.get(name, name))
        except metadata.PackageNotFoundError:
            absent = f"not installed; optional, for {EXTRAS[name]}" if optional else "missing" + wanted
            yield Line(name, "off" if optional else "bad", absent, "" if optional else fix)
        except BROKEN as error:
            yield Line(name, "off" if optional else "bad", f"{version} does not load: {_first(error)}", fix)
        else:
            fits = requirement.specifier.contains(version, prereleases=True)
            yield Line(name, "ok" if fits else "bad", version + ("" if fits else wanted), "" if fits else fix)


def card(config: Config) -> Iterator[Line]:
    import torch

    if not torch.cuda.is_available():
        detail = f"no card to use: training runs on the CPU ({torch.get_num_threads()} threads)"
        if torch.version.cuda:
            yield Line("CUDA", "off", detail, "if there is a card, see what nvidia-smi says about its driver")
        else:
            yield Line("CUDA", "off", detail + "; this torch was built without CUDA")
        return
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    major, minor = properties.major, properties.minor
    gib = 2**30
    yield Line("card", "ok", f"{properties.name}, compute capability {major}.{minor}")
    yield Line("video memory", "ok", f"{free / gib:.1f} of {total / gib:.1f} GiB free")
    if free < 0.6 * total:
        held = f"hold {(total - free) / gib:.1f} GiB"
        yield Line("other programs", "off", held, "close them, or choose a smaller --vram_gb")
    bf16 = major >= 8
    yield Line("bf16", "ok" if bf16 else "off", "works" if bf16 else "not on this card: fp16 is used")


def attention(config: Config) -> Iterator[Line]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    device, dtype = _place(config)
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
            yield Line(name, "off", "not installed" if absent else why or _first(error))
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
    import torch

    device, dtype = _place(config)
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
            needed = name.startswith("adamw")
            fix = "report this; --optimizer torch_adamw works meanwhile" if needed else "use --optimizer adamw"
            yield Line(name, "bad" if needed else "off", f"does not work here: {_first(error)}", fix)
            continue
        before, after = float((start - goal).norm()), float((moved - goal).norm())
        learned = after < 0.98 * before
        detail = f"distance to the goal {before:.1f} -> {after:.1f}" + (f"; {_first(said[0].message)}" if said else "")
        yield Line(name, "ok" if learned else "bad", detail, "" if learned else "use another --optimizer")


def kernels(config: Config) -> Iterator[Line]:
    import torch

    device, dtype = _place(config)
    if device.type != "cuda":
        yield Line("Triton", "off", "no CUDA card: every kernel runs as its reference, in plain torch")
        return
    source = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn(2, 64, 8, 8, generator=source), torch.rand(64), torch.rand(64)
    try:
        from trainer.kernels.groupnorm_silu import groupnorm_silu

        got = groupnorm_silu(x.to(device, dtype), weight.to(device, dtype), bias.to(device, dtype), 32)
        expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, weight, bias))
        error = float((got.float().cpu() - expected).norm() / expected.norm())
    except BROKEN as error:
        fix = "install gcc and the triton that belongs to this torch"
        yield Line("Triton", "bad", f"does not compile: {_first(error)}", fix)
        return
    yield Line("Triton", "ok" if error < 3e-2 else "bad", f"GroupNorm with SiLU compiled, relative error {error:.1e}")


def disk(config: Config) -> Iterator[Line]:
    for name, place, need in (
        ("run folder", Path(config.run.output_dir or "runs"), 10),
        ("model cache", Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")), 7),
    ):
        existing = place.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free / 1e9
        writable = os.access(existing, os.W_OK)
        detail = f"{free:.0f} GB free under {existing}" + ("" if writable else ", not writable")
        enough = free >= need and writable
        option = "--output_dir on another disk" if name == "run folder" else "HF_HOME on another disk"
        state = "ok" if enough else "off" if writable else "bad"
        yield Line(name, state, detail, "" if enough else f"free some space, or set {option}")


def _place(config: Config):
    """(device, dtype) that a run would compute with here."""
    import torch

    cuda = torch.cuda.is_available() and config.run.device != "cpu"
    if not cuda:
        return torch.device("cpu"), torch.float32
    return torch.device("cuda"), torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def _first(error: BaseException | Warning) -> str:
    """The first line of an error, short enough for a table."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if len(text) <= 90 else text[:87] + "..."


def _mark(state: str) -> str:
    words = {"ok": "ok  ", "off": "-   ", "bad": "BAD "}
    colors = {"ok": "\x1b[32m", "off": "\x1b[2m", "bad": "\x1b[31m"}
    shown = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"{colors[state]}{words[state]}\x1b[0m" if shown else words[state]
