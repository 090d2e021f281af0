"""The Triton kernels themselves, without a GPU: run by Triton's interpreter, and compiled for real cards."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def distances():
    """Relative distance of each kernel's results from its reference."""
    script = Path(__file__).with_name("kernels_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def of(distances, prefix, dtype=""):
    found = {name: value for name, value in distances.items() if name.startswith(prefix) and dtype in name}
    assert found
    return found


def test_the_optimizer_kernel_computes_what_its_reference_computes(distances):
    for name, distance in of(distances, "adamw").items():
        # one code of a 4-bit moment may fall the other way where fp32 rounds differently
        assert distance < (1e-2 if "4bit" in name else 1e-3), name


def test_the_optimizer_kernel_stores_the_codes_and_weights_of_its_reference(distances):
    for name, share_of_different_codes in of(distances, "codes").items():
        assert share_of_different_codes < 2e-3, name


@pytest.mark.parametrize("kernel", ["groupnorm", "layernorm", "geglu"])
@pytest.mark.parametrize("dtype,tolerance", [("float32", 5e-6), ("bfloat16", 8e-3)])  # the interpreter cuts bf16
def test_activation_kernels_compute_what_their_references_compute(distances, kernel, dtype, tolerance):
    for name, distance in of(distances, kernel, dtype).items():
        assert distance < tolerance, name


KERNELS = {
    "adamw": {"_kernel"},
    "groupnorm": {"statistics", "merge", "forward", "backward_sums", "gather", "backward"},
    "layernorm": {"_forward", "_backward", "_gather"},
    "geglu": {"_forward", "_backward"},
    "trial": {"double"},
}
FILES = {
    "adamw_lowbit": "adamw",
    "groupnorm_silu": "groupnorm",
    "layernorm": "layernorm",
    "geglu": "geglu",
    "choice": "trial",
}


def test_every_kernel_that_is_launched_is_compiled_here():
    for path in (Path(__file__).parent.parent.parent / "kernels").glob("*.py"):
        launched = set(
            re.findall(r"^ +(\w+)\[.+\]\($|^ +(\w+)\[.+?\]\(\S", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
        names = {one or other for one, other in launched}
        assert names == KERNELS.get(FILES.get(path.stem, ""), set()), path.stem


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces compiling")
@pytest.mark.parametrize("capability", [75, 86, 89, 90, 120])
def test_every_kernel_compiles_for_real_cards_without_one_and_stays_in_its_registers(capability, tmp_path):
    script = Path(__file__).with_name("kernels_compiled.py")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    words = [sys.executable, str(script), str(capability)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    needs = json.loads(done.stdout.splitlines()[-1])
    for operation, kernels in KERNELS.items():
        assert {name.split()[-1] for name in needs if f" {operation} " in name} == kernels
    for name, need in needs.items():
        # one register out and in: the assembler's own choice in two variants of 90, for one block more at a time
        assert need["spilled_bytes"] <= 8 and need["shared_bytes"] <= 48 << 10, name
        assert vectors(name, need["moves"]), (name, need["moves"])


def vectors(name: str, moves: dict[str, int]) -> bool:
    """Whether what is large moves 16 bytes at a time: one image position or one row alone has nothing to put together."""
    if "adamw" in name:  # a byte alone is the overflow flag
        return moves.get("ld.global.b8", 0) <= 1 and not any(f"{way}.global.b16" in moves for way in ("ld", "st"))
    if "(1, 1)" in name or name.endswith(("merge", "gather", "double")):
        return True
    return "ld.global.v4.b32" in moves


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("moments", ["fp32", "8bit", "4bit"])
@pytest.mark.parametrize("weights", ["fp32", "24bit", "16bit_sr"])
def test_on_the_card_the_optimizer_agrees_with_the_reference_on_the_host(weights, moments):
    from trainer.kernels.adamw_lowbit import State, step_

    torch.manual_seed(0)
    start, states = torch.randn(100_001) * 0.03, {}
    for device in ("cpu", "cuda"):

        def empty(shape, dtype, device=device):
            return torch.empty(shape, dtype=dtype, device=device)

        kind = {"weights": weights, "moments": moments, "compute_dtype": torch.bfloat16}
        states[device] = State.allocate(start.numel(), **kind, empty=empty).initialise(start)
    for step in range(1, 6):
        grad = torch.randn_like(start) * 1e-3
        for device, state in states.items():
            step_(
                state, grad.to(device), lr=1e-3, weight_decay=0.01, step=step, clip_scale=torch.ones((), device=device)
            )
    moved = states["cpu"].master() - start
    distance = (states["cuda"].master().cpu() - states["cpu"].master()).norm() / moved.norm()
    assert distance < (2e-2 if moments == "4bit" else 5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_the_card_activation_kernels_agree_with_their_references(dtype, tolerance, layout):
    from trainer.kernels import geglu, groupnorm_silu, layernorm

    torch.manual_seed(0)
    x = torch.randn(2, 320, 33, 17, device="cuda").to(dtype).contiguous(memory_format=layout)
    w, b = torch.randn(320, device="cuda").to(dtype), torch.randn(320, device="cuda").to(dtype)
    tokens = torch.randn(2, 77, 320, device="cuda").to(dtype)
    stats = groupnorm_silu.reference(x, w, b, 32, 1e-5, True)[1:]
    rows = layernorm.reference(tokens, w, b, 1e-5)[1:]
    gate = torch.randn(2, 77, 160, device="cuda").to(dtype)
    pairs = [
        (groupnorm_silu.launch(x, w, b, 32, 1e-5, True), groupnorm_silu.reference(x, w, b, 32, 1e-5, True)),
        (
            groupnorm_silu.launch_backward(x, x, w, b, *stats, 32, 1e-5, True),
            groupnorm_silu.reference_backward(x, x, w, b, *stats, 32, 1e-5, True),
        ),
        (layernorm.launch(tokens, w, b, 1e-5), layernorm.reference(tokens, w, b, 1e-5)),
        (
            layernorm.launch_backward(tokens, tokens, w, b, *rows),
            layernorm.reference_backward(tokens, tokens, w, b, *rows),
        ),
        ([geglu.launch(tokens)], [geglu.reference(tokens)]),
        ([geglu.launch_backward(gate, tokens)], [geglu.reference_backward(gate, tokens)]),
    ]
    for mine, expected in pairs:
        for a, e in zip(mine, expected, strict=True):
            assert (a.float() - e.float()).norm() <= tolerance * e.float().norm()
