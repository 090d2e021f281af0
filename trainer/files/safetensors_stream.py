"""safetensors files written piece by piece, so neither a checkpoint nor an export needs a second copy of anything in RAM.

The format is 8 bytes with the length of a JSON header, the header (name -> dtype, shape, byte range; and a
`__metadata__` of strings), then the tensors' bytes (https://github.com/huggingface/safetensors). Every place is known
before the first byte is written, so tensors may arrive in any order, and in pieces.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from trainer.files import regular
from trainer.files.mapped import forget

DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
BITS = (  # of one number, by the format's words
    dict.fromkeys(("F64", "I64", "U64", "C64"), 64)
    | dict.fromkeys(("F32", "I32", "U32"), 32)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 16)
    | dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6)
    | {"F4": 4}
)
PIECE_BYTES = 2**24  # what is on its way from a card to the file at one time


@dataclass(frozen=True)
class Header:
    """What a file says about itself: tensors as name -> (dtype word, shape), and its metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]


def header(path: Path) -> Header:
    """Read the header alone. Raises ValueError for a file that is not safetensors, is cut short, or whose header lies."""
    try:
        with regular.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise ValueError(f"{path} is not a safetensors file")
            entries = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file: its header is no JSON") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not a safetensors file: its header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path} is damaged: its metadata is no text")
    ranges = sorted((*_range(path, name, entry), name) for name, entry in entries.items())
    end = 0
    for first, last, name in ranges:
        if first != end:
            raise ValueError(f"{path} is damaged: the bytes of {name} overlap others or leave a gap")
        end = last
    if size < 8 + length + end:
        raise ValueError(f"{path} is cut short: {size} of {8 + length + end} bytes are there")
    return Header({name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}, metadata)


def _range(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Where a tensor's bytes lie, by its entry, which must agree with itself."""
    try:
        word, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        whole_numbers = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {name} has no dtype, shape and place") from error
    if not isinstance(word, str) or word not in BITS:
        raise ValueError(f"{path} holds a type that is unknown here: {name} is {str(word)[:20]!r}")
    if not whole_numbers or (math.prod(shape) * BITS[word] + 7) // 8 != last - first:
        raise ValueError(f"{path} is damaged: the shape of {name} and its bytes do not agree")
    return first, last


def size_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of the tensors, without the header."""
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize


class Writer:
    """Write tensors to `path`, each in the one dtype or in its own; on leaving the `with` block all must be there. What
    is written is the part of something `whole`, which flushes it, or removes it where this ends badly.

    with whole(path) as part, Writer(part, {"a": (2, 3)}, torch.float16, {"format": "pt"}) as file:
        file.write("a", tensor)
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype | Mapping[str, torch.dtype],
        metadata: Mapping[str, str],
    ):
        self.path = path
        self.dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(shapes, dtype)
        self.offsets: dict[str, int] = {}
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        place = 0
        for name in sorted(shapes, key=lambda name: -self.dtypes[name].itemsize):  # so that every tensor is aligned
            end = place + math.prod(shapes[name]) * self.dtypes[name].itemsize
            entries[name] = {
                "dtype": DTYPES[self.dtypes[name]],
                "shape": list(shapes[name]),
                "data_offsets": [place, end],
            }
            self.offsets[name] = place
            place = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
        self.start, self.missing_bytes = 8 + len(text), place
        self.file = open(path, "wb")  # noqa: SIM115  closed in __exit__
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor, first: int = 0) -> None:
        """Write `tensor` (any dtype, any device) as `name`, from its element `first` on."""
        dtype = self.dtypes[name]
        self.file.seek(self.start + self.offsets[name] + first * dtype.itemsize)
        for piece in tensor.detach().reshape(-1).split(PIECE_BYTES // dtype.itemsize):
            data = piece.to("cpu", dtype).view(torch.uint8).numpy()
            self.file.write(data.data)
            self.missing_bytes -= data.nbytes
            forget(piece)  # a table of words alone may have a gigabyte of a file's pages

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        assert kind is not None or self.missing_bytes == 0, (
            f"{self.path.name}: {self.missing_bytes} bytes were never written"
        )
