"""What AdamW remembers about n weights, as named flat tensors: weight, correction, and two moments with their scales.

The tensors are all there is: an engine may place each on the card or on the host, copy them as one block, or hand
`meta` ones to a simulation. Element i of every tensor belongs to weight i; a scale belongs to a group of neighbours, so
parameters that share a buffer should start at multiples of ALIGN, where no group straddles two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .moments import FORMATS, Format, decode
from .weights24 import pack, unpack

Weights = Literal["fp32", "24bit", "16bit_sr"]
Moments = Literal["fp32", "8bit", "4bit"]
ALIGN = 128  # a multiple of every group, and of what vectorised copies want
CHUNK = 1 << 20  # elements that the CPU reference holds in fp32 at a time; a multiple of every group


def layout(
    n: int, weights: Weights, moments: Moments, compute_dtype: torch.dtype
) -> dict[str, tuple[tuple[int], torch.dtype]]:
    """Name -> (shape, dtype) of every tensor of the state, in storage order."""
    assert weights == "fp32" or compute_dtype in (torch.bfloat16, torch.float16), (
        f"{weights} weights are bf16 or fp16, not {compute_dtype}"
    )
    tensors = {"weight": ((n,), torch.float32 if weights == "fp32" else compute_dtype)}
    if weights == "24bit":
        tensors["correction"] = ((n,), torch.int8)
    if moments == "fp32":
        return tensors | {"m": ((n,), torch.float32), "v": ((n,), torch.float32)}
    form = FORMATS[moments]
    return tensors | {
        "m": (form.code_shape(n), torch.int8 if form.bits == 8 else torch.uint8),
        "m_scale": (form.scale_shape(n), torch.float32),
        "v": (form.code_shape(n), torch.uint8),
        "v_scale": (form.scale_shape(n), torch.float32),
    }


def block_bytes(tensors: dict[str, tuple[tuple[int], torch.dtype]], names: Iterable[str]) -> int:
    """Bytes of one block that holds the tensors `names` of a layout (each starts at a multiple of 16)."""
    return sum(_padded(*tensors[name]) for name in names)


def views(block: Tensor, tensors: dict[str, tuple[tuple[int], torch.dtype]], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors `names` of a layout as views of one uint8 `block`, so that one copy moves them all."""
    assert block.dtype == torch.uint8 and block.dim() == 1
    found, start = {}, 0
    for name in names:
        shape, dtype = tensors[name]
        found[name] = block[start : start + shape[0] * dtype.itemsize].view(dtype)
        start += _padded(shape, dtype)
    return found


def _padded(shape: tuple[int], dtype: torch.dtype) -> int:
    return -(-shape[0] * dtype.itemsize // 16) * 16


@dataclass
class State:
    """first: the number of the first weight where these n are a slice of a longer row; random rounding draws by it."""

    n: int
    weights: Weights
    moments: Moments
    compute_dtype: torch.dtype
    tensors: dict[str, Tensor]
    first: int = 0

    @classmethod
    def allocate(
        cls, n: int, *, weights: Weights, moments: Moments, compute_dtype: torch.dtype, empty: Callable[..., Tensor]
    ) -> State:
        """`empty(shape, dtype)` decides where each tensor lives. Contents are undefined until `initialise`."""
        tensors = {
            name: empty(shape, dtype) for name, (shape, dtype) in layout(n, weights, moments, compute_dtype).items()
        }
        return cls(n, weights, moments, compute_dtype, tensors)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def initialise(self, source: Tensor) -> State:
        """Take the weights from `source` (fp32 or 16-bit, n elements) and start with moments of zero."""
        self.set_master(source)
        for name in ("m", "m_scale", "v", "v_scale"):
            if name in self.tensors:
                # 4-bit zero of m is code 8 in both halves of a byte; with its scale of 0 any code would do
                self.tensors[name].fill_(0x88 if name == "m" and self.moments == "4bit" else 0)
        return self

    def master(self, out: Tensor | None = None) -> Tensor:
        """The full-precision weights, fp32 (n,)."""
        weight = self.tensors["weight"]
        if out is None:
            out = torch.empty(self.n, dtype=torch.float32, device=weight.device)
        for part in chunks(self.n):
            out[part] = (
                unpack(weight[part], self.tensors["correction"][part]) if self.weights == "24bit" else weight[part]
            )
        return out

    def set_master(self, source: Tensor) -> None:
        """Weights (and corrections) from `source`, rounded to nearest; the moments stay."""
        assert source.numel() == self.n
        source, weight = source.detach().reshape(-1), self.tensors["weight"]
        for part in chunks(self.n):
            values = source[part].to(weight.device)
            if self.weights == "24bit":
                weight[part], self.tensors["correction"][part] = pack(values.float().contiguous(), weight.dtype)
            else:
                weight[part] = values

    def moments_fp32(self, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """m and v of the elements `part` (which starts at a multiple of ALIGN) in fp32."""
        start, stop, _ = part.indices(self.n)
        t = self.tensors
        if self.moments == "fp32":
            return t["m"][start:stop], t["v"][start:stop]
        form = FORMATS[self.moments]
        codes, scales = moment_slices(form, start, stop)
        return decode(t["m"][codes], t["m_scale"][scales], t["v"][codes], t["v_scale"][scales], form, stop - start)


def chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def moment_slices(form: Format, start: int, stop: int) -> tuple[slice, slice]:
    """Where the codes and scales of elements start..stop lie; `start` is a multiple of the group."""
    assert start % form.group == 0
    scales = slice(start // form.group, -(-stop // form.group))
    codes = (
        slice(start, stop) if form.bits == 8 else slice(scales.start * form.group // 2, scales.stop * form.group // 2)
    )
    return codes, scales
