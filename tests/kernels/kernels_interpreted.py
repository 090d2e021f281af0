"""Runs every Triton kernel in Triton's interpreter beside its reference; prints the distances as one JSON line.

The interpreter must be chosen before Triton is imported, so test_triton.py runs this file as a process.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from trainer.kernels import adamw_lowbit, geglu, groupnorm_silu, layernorm
from triton.runtime import interpreter

distances: dict[str, float] = {}


def _accept_numpy() -> None:
    """Triton 3.6 makes a loop's bound a number by int(array of one), which numpy 2.4 refuses."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def compare(name, mine, expected):
    memory = {part.untyped_storage().data_ptr() for part in mine}
    assert len(memory) == len(mine), f"{name}: a custom op may not return tensors that share memory"
    for part, (a, b) in enumerate(zip(mine, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride(), name
        distances[f"{name} {part}"] = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def adamw():
    for weights, moments, dtype in (
        ("fp32", "fp32", torch.float32),
        ("24bit", "8bit", torch.bfloat16),
        ("24bit", "4bit", torch.float16),
        ("16bit_sr", "8bit", torch.float16),
        ("16bit_sr", "4bit", torch.bfloat16),
    ):
        start = torch.randn(1100) * 0.03
        start[:100] *= 1e-4  # some weights are subnormal in fp16
        mine, expected = (
            adamw_lowbit.State.allocate(
                1100, weights=weights, moments=moments, compute_dtype=dtype, empty=lambda s, d: torch.empty(s, dtype=d)
            ).initialise(start)
            for _ in range(2)
        )
        clip, go, stop = torch.tensor(0.5), torch.tensor(0.0), torch.tensor(1.0)
        for step in (1, 2):
            grad = (torch.randn(1100) * 1e-3).to(dtype)
            words = adamw_lowbit.scalars(1e-3, 0.9, 0.999, 0.01, step, 7, 0.2)
            origin = start.half() if step == 2 or weights == "24bit" else None
            numbers = torch.tensor(words, dtype=torch.int32) if step == 2 else None
            for state, run in ((mine, adamw_lowbit.launch), (expected, adamw_lowbit.reference)):
                t = state.tensors
                head = (
                    t["weight"],
                    t.get("correction"),
                    t["m"],
                    t.get("m_scale"),
                    t["v"],
                    t.get("v_scale"),
                    grad,
                    clip,
                )
                run(*head, go, numbers, words if numbers is None else [0] * 6, moments, 0.9, 0.999, 1e-8, 128, origin)
        for state, run in ((mine, adamw_lowbit.launch), (expected, adamw_lowbit.reference)):
            t = state.tensors
            head = (t["weight"], t.get("correction"), t["m"], t.get("m_scale"), t["v"], t.get("v_scale"), grad, clip)
            run(*head, stop, None, words, moments, 0.9, 0.999, 1e-8)
        name = f"adamw {weights} {moments} {dtype}"
        compare(name, (mine.master(), *mine.moments_fp32()), (expected.master(), *expected.moments_fp32()))
        changed = sum(int((mine.tensors[k] != expected.tensors[k]).sum()) for k in ("m", "v", "weight"))
        distances[f"codes {name}"] = changed / 3300 if weights != "fp32" and moments != "fp32" else 0.0


def activations():
    for dtype in (torch.float32, torch.bfloat16):
        for layout, silu in (
            (torch.contiguous_format, True),
            (torch.channels_last, True),
            (torch.channels_last, False),
        ):
            x = (torch.randn(2, 12, 9, 8) + 3).to(dtype).contiguous(memory_format=layout)
            w, b, dy = torch.randn(12).to(dtype), torch.randn(12).to(dtype), torch.randn_like(x)
            y, mean, rstd = groupnorm_silu.reference(x, w, b, 4, 1e-5, silu)
            name = f"groupnorm {dtype} {layout} {silu}"
            compare(name, groupnorm_silu.launch(x, w, b, 4, 1e-5, silu), (y, mean, rstd))
            args = (dy, x, w, b, mean, rstd, 4, 1e-5, silu)
            mine, expected = groupnorm_silu.launch_backward(*args), groupnorm_silu.reference_backward(*args)
            compare(f"{name} backward", mine, expected)
        x, w, b = torch.randn(2, 5, 12).to(dtype), torch.randn(12).to(dtype), torch.randn(12).to(dtype)
        y, mean, rstd = layernorm.reference(x, w, b, 1e-5)
        compare(f"layernorm {dtype}", layernorm.launch(x, w, b, 1e-5), (y, mean, rstd))
        args = (torch.randn_like(x), x, w, b, mean, rstd)
        compare(f"layernorm {dtype} backward", layernorm.launch_backward(*args), layernorm.reference_backward(*args))
        x, dy = torch.randn(3, 5, 22).to(dtype), torch.randn(3, 5, 11).to(dtype)
        compare(f"geglu {dtype}", [geglu.launch(x)], [geglu.reference(x)])
        compare(f"geglu {dtype} backward", [geglu.launch_backward(dy, x)], [geglu.reference_backward(dy, x)])


if __name__ == "__main__":
    _accept_numpy()
    torch.manual_seed(0)
    adamw()
    activations()
    print(json.dumps(distances))
