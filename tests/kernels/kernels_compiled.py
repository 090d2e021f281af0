"""Compiles every Triton kernel for real cards without one: each `launch` runs as far as Triton's own argument binder and
compiler, then stops before the driver. Prints registers, spilled bytes and how each variant reads and writes memory
(instruction -> how often) as one JSON line.

    python tests/kernels/kernels_compiled.py [--all] 75 86 89 90

Types, divisibility and the special case of arguments that are 1 are thus what a run would really compile, not what a
hand-written signature says. --all: every combination of formats, layouts and special cases (some 500 to 800 kernels,
minutes) instead of a few for each code path.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from trainer.kernels import adamw_lowbit, choice, geglu, groupnorm_silu, layernorm
from trainer.kernels.adamw_lowbit import ALIGN
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class NoCard:
    """What the binder asks a driver."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


found: dict[str, dict] = {}


def main(words: list[str]) -> None:
    run, everything = JITFunction.run, "--all" in words
    for capability in [int(word) for word in words if word != "--all"]:
        driver.set_active(NoCard(capability))
        trial = ("trial", lambda: choice.double[(1,)](torch.ones(128), torch.ones(128)))
        for label, launch in [trial, *adamw(capability, everything), *activations(capability, everything)]:

            def compiled(self, *args, prefix=f"sm_{capability} {label}", capability=capability, **options):
                kernel = run(self, *args, **options | {"warmup": True})
                needs = resources(kernel.asm["ptx"], capability) | {"shared_bytes": kernel.metadata.shared}
                found[f"{prefix} {self.fn.__name__}"] = needs

            JITFunction.run = compiled
            launch()
    JITFunction.run = run
    print(json.dumps(found))


def resources(ptx: str, capability: int) -> dict:
    """What the assembler says a kernel needs."""
    assembler = get_ptxas(capability)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        target = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
        words = [assembler.path, "-v", target, "-o", "/dev/null", source.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))
    moves = Counter(re.findall(r"\b(?:ld|st)\.global\S*", ptx))
    return {"registers": int(re.search(r"Used (\d+) registers", said)[1]), "spilled_bytes": spilled, "moves": moves}


def halves(capability: int) -> list[torch.dtype]:
    """16-bit types that the card computes with."""
    return [torch.float16, torch.bfloat16] if capability >= 80 else [torch.float16]


def adamw(capability: int, everything: bool):
    """(label, call) for the formats that policies can name; gradients are 16-bit, or fp32 under accumulation."""
    kinds = [("fp32", moments, torch.float32) for moments in ("fp32", "8bit", "4bit")]
    for half in halves(capability):
        kinds += itertools.product(("24bit", "16bit_sr"), ("fp32", "8bit", "4bit"), (half,))
    flags = list(itertools.product((False, True), repeat=3))  # fp32 gradients, clipping, an overflow flag
    for number, (weights, moments, dtype) in enumerate(kinds):
        for chosen in flags if everything else [flags[(3 * number) % 8]]:
            yield _adamw(weights, moments, dtype, *chosen, False, number % 2 == 1)
        if everything:
            yield _adamw(weights, moments, dtype, False, True, True, True, True)


def _adamw(weights: str, moments: str, dtype: torch.dtype, *on: bool):
    """on: fp32 gradients, clipping, an overflow flag, numbers on the device, an origin."""
    wide, clip, skip, numbers, origin = on
    n = 9 * ALIGN  # as every unit's is a multiple of it
    state = adamw_lowbit.State.allocate(
        n, weights=weights, moments=moments, compute_dtype=dtype, empty=lambda s, d: torch.zeros(s, dtype=d)
    )
    t, words = state.tensors, adamw_lowbit.scalars(1e-6, 0.9, 0.999, 0.01, 3, 7)
    arguments = (
        t["weight"], t.get("correction"), t["m"], t.get("m_scale"), t["v"], t.get("v_scale"),
        torch.zeros(n, dtype=torch.float32 if wide else t["weight"].dtype),
        torch.ones(()) if clip else None, torch.zeros((), dtype=torch.bool) if skip else None,
        torch.tensor(words, dtype=torch.int32) if numbers else None, words, moments, 0.9, 0.999, 1e-8, 0,
        torch.zeros(n, dtype=torch.float16) if origin else None,
    )  # fmt: skip
    options = "".join(
        f" {name}" for name, on in zip(("wide", "clip", "skip", "numbers", "origin"), on, strict=True) if on
    )
    return f"adamw {weights} {moments} {_short(dtype)}{options}", partial(adamw_lowbit.launch, *arguments)


def activations(capability: int, everything: bool):
    """Sizes that 16 divides, that it does not, and 1, which Triton compiles as a constant."""
    channels = (320, 640, 960, 1280, 1920, 2560) if everything else (320,)  # of SD 1.5; SDXL's are among them
    sides = ((64, 64), (9, 7), (1, 1)) if everything else ((64, 64), (1, 1))
    rows, both = (8192, 77, 1) if everything else (8192, 1), (True, False) if everything else (True,)
    for dtype in [torch.float32, *halves(capability)] if everything else halves(capability):
        # under autocast activations are 16-bit and the norms' parameters fp32
        for kept in dict.fromkeys((dtype, torch.float32) if everything else (dtype,)):
            for width, side, layout, silu in itertools.product(
                channels, sides, (torch.contiguous_format, torch.channels_last), both
            ):
                x = torch.zeros(2, width, *side, dtype=dtype).contiguous(memory_format=layout)
                w, stats = torch.zeros(width, dtype=kept), (torch.zeros(2, 32), torch.ones(2, 32))
                name = f"groupnorm {_short(dtype)} x {_short(kept)} {width} {side} {_short(layout)}{' silu' * silu}"
                yield name, partial(groupnorm_silu.launch, x, w, w, 32, 1e-5, silu)
                yield f"{name} backward", partial(groupnorm_silu.launch_backward, x, x, w, w, *stats, 32, 1e-5, silu)
            for width, count in itertools.product((320, 640, 1280, 12) if everything else (320, 1280), rows):
                x, w = torch.zeros(count, width, dtype=dtype), torch.zeros(width, dtype=kept)
                stats, name = (
                    (torch.zeros(count), torch.ones(count)),
                    f"layernorm {_short(dtype)} x {_short(kept)} {count} {width}",
                )
                yield name, partial(layernorm.launch, x, w, w, 1e-5)
                yield f"{name} backward", partial(layernorm.launch_backward, x, x, w, w, *stats)
        for width, count in itertools.product((1280, 5120, 11) if everything else (1280,), rows):
            x, dy = torch.zeros(count, 2 * width, dtype=dtype), torch.zeros(count, width, dtype=dtype)
            yield f"geglu {_short(dtype)} {count} {width}", partial(geglu.launch, x)
            yield f"geglu {_short(dtype)} {count} {width} backward", partial(geglu.launch_backward, dy, x)


def _short(name: torch.dtype | torch.memory_format) -> str:
    return str(name).removeprefix("torch.")


if __name__ == "__main__":
    main(sys.argv[1:])
