"""Headers are believed only where they agree with themselves and with the file."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.files.safetensors_stream import Writer, header

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def written(path, head, data=b"\0" * 32, length=None):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_what_is_written_in_pieces_is_read_by_the_library(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4, dtype=torch.int64)}
    with Writer(
        tmp_path / "x",
        {n: tuple(t.shape) for n, t in tensors.items()},
        {n: t.dtype for n, t in tensors.items()},
        {"k": "v"},
    ) as file:
        file.write("b", tensors["b"])
        file.write("a", tensors["a"][:1])
        file.write("a", tensors["a"][1:], first=5)
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert header(tmp_path / "x").metadata == {"k": "v"}
    assert header(tmp_path / "x").tensors == {"a": ("F32", (3, 5)), "b": ("I64", (4,))}


def test_every_type_that_the_library_writes_is_known(tmp_path):
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
             torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16, torch.uint32, torch.uint64]  # fmt: skip
    save_file({str(kind): torch.zeros(3, dtype=kind) for kind in kinds}, tmp_path / "x")
    assert len(header(tmp_path / "x").tensors) == len(kinds)


LIES = {
    "list": ([1, 2], "no JSON object"),
    "no json": (b"{]", "no JSON"),
    "no text": (b'"\xff"', "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "entry": ({"a": 1}, "no dtype, shape and place"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2, 2]}}, "no dtype, shape and place"),
    "one offset": ({"a": ENTRY | {"data_offsets": [0]}}, "no dtype, shape and place"),
    "negative": ({"a": ENTRY | {"data_offsets": [-16, 0]}}, "do not agree"),
    "backwards": ({"a": ENTRY | {"data_offsets": [16, 0]}}, "do not agree"),
    "fraction": ({"a": ENTRY | {"data_offsets": [0.0, 16.0]}}, "do not agree"),
    "truth": ({"a": ENTRY | {"shape": [True, 4]}}, "do not agree"),
    "shape": ({"a": ENTRY | {"shape": [10**12, 10**12]}}, "do not agree"),
    "negative shape": ({"a": ENTRY | {"shape": [-2, -2]}}, "do not agree"),
    "dtype": ({"a": ENTRY | {"dtype": "Q7"}}, "a type that is unknown here"),
    "dtype is no word": ({"a": ENTRY | {"dtype": ["F32"]}}, "a type that is unknown here"),
    "overlap": ({"a": ENTRY, "b": ENTRY}, "overlap others or leave a gap"),
    "gap": ({"a": ENTRY | {"data_offsets": [16, 32]}}, "overlap others or leave a gap"),
    "beyond": ({"a": {"dtype": "U8", "shape": [10**9], "data_offsets": [0, 10**9]}}, "is cut short"),
    "metadata": ({"__metadata__": {"a": 1}}, "its metadata is no text"),
    "metadata list": ({"__metadata__": []}, "its metadata is no text"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_lies_is_refused_in_one_line(tmp_path, kind):
    head, said = LIES[kind]
    with pytest.raises(ValueError, match=said):
        header(written(tmp_path / "x", head))


@pytest.mark.parametrize("length", [0, 1, 2**63, 90_000_000, 200_000_000])
def test_an_absurd_length_is_refused(tmp_path, length):
    with pytest.raises(ValueError, match="not a safetensors file"):
        header(written(tmp_path / "x", {"a": ENTRY}, length=length))


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="a pipe, not a file"):
        header(tmp_path / "x")
