"""Models that are none: files whose header lies, folders in which something is missing, broken or no number."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def safetensors(header: object, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changed) -> dict:
    return {"model.diffusion_model.x": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changed}


# what a file named model.safetensors holds, or how it is made
FILES = {
    "empty": (b"", "is not a safetensors file"),
    "four-bytes": (b"\1\0\0\0", "is not a safetensors file"),
    "text": (b"no weights at all, but a letter", "is not a safetensors file"),
    "html": (b"<!DOCTYPE html><html>404</html>", "is not a safetensors file"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "is not a safetensors file"),
    "header-beyond-the-file": (safetensors(one(), length=10**6), "is not a safetensors file"),
    "header-absurd": (safetensors(one(), length=2**63), "is not a safetensors file"),
    "header-no-json": (safetensors(b"{nothing"), "is not a safetensors file: its header is no JSON"),
    "header-a-list": (safetensors([1, 2]), "is not a safetensors file: its header is no JSON object"),
    "header-a-number": (safetensors(3), "is not a safetensors file"),
    "header-not-utf8": (safetensors(b'{"\xff": 1}'), "is not a safetensors file: its header is no JSON"),
    "header-deep": (
        safetensors(b'{"a": ' + b"[" * 9999 + b"]" * 9999 + b"}"),
        "is not a safetensors file: its header is no JSON",
    ),
    "no-tensor": (safetensors({}), "holds no Stable Diffusion UNet (no model.diffusion_model.... tensors)"),
    "tensor-a-number": (safetensors({"x": 3}), "is damaged: x has no dtype, shape and place"),
    "unknown-dtype": (
        safetensors(one(dtype="F7")),
        "holds a type that is unknown here: model.diffusion_model.x is 'F7'",
    ),
    "dtype-a-number": (safetensors(one(dtype=7)), "holds a type that is unknown here: model.diffusion_model.x is '7'"),
    "offsets-negative": (
        safetensors(one(data_offsets=[-64, 0])),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "offsets-reversed": (
        safetensors(one(data_offsets=[64, 0])),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "offsets-beyond": (
        safetensors(one(data_offsets=[64, 128])),
        "is damaged: the bytes of model.diffusion_model.x overlap others or leave a gap",
    ),
    "offsets-one": (
        safetensors(one(data_offsets=[0])),
        "is damaged: model.diffusion_model.x has no dtype, shape and place",
    ),
    "offsets-text": (
        safetensors(one(data_offsets="all")),
        "is damaged: model.diffusion_model.x has no dtype, shape and place",
    ),
    "shape-absurd": (
        safetensors(one(shape=[2**40, 2**40])),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "shape-negative": (
        safetensors(one(shape=[-16])),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "shape-text": (
        safetensors(one(shape="16")),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "shape-too-small": (
        safetensors(one(shape=[4])),
        "is damaged: the shape of model.diffusion_model.x and its bytes do not agree",
    ),
    "overlapping": (
        safetensors(one() | {"model.diffusion_model.y": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
        "is damaged: the bytes of model.diffusion_model.y overlap others or leave a gap",
    ),
    "no-model": (
        safetensors({"x": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
        "holds no Stable Diffusion UNet (no model.diffusion_model.... tensors)",
    ),
    "a-pipe": (lambda path: os.mkfifo(path), "is a pipe or a device"),
    "a-device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device"),
    "a-folder": (lambda path: path.mkdir(), "is not a diffusers folder: it has no model_index.json"),
}


def write(name: str, text: bytes | str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(text.encode() if isinstance(text, str) else text)


def weights(model: Path, part: str) -> Path:
    return next((model / part).glob("*.safetensors"))


def without(name: str) -> Callable[[Path], None]:
    return lambda model: shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()


def cut(part: str, left: float) -> Callable[[Path], None]:
    def act(model: Path) -> None:
        path = weights(model, part)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])

    return act


def no_number(model: Path) -> None:
    path = weights(model, "unet")
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)


def piped(name: str) -> Callable[[Path], None]:
    return lambda model: ((model / name).unlink(missing_ok=True), os.mkfifo(model / name))


# what becomes of a folder that holds a whole model
MODELS = {
    "no-index": (without("model_index.json"), "is not a diffusers folder: it has no model_index.json"),
    "index-empty": (write("model_index.json", ""), "model_index.json is damaged: it is not JSON"),
    "index-cut": (write("model_index.json", '{"_class_name": "Stable'), "model_index.json is damaged: it is not JSON"),
    "index-a-list": (write("model_index.json", "[]"), "model_index.json is damaged: it holds no JSON object"),
    "index-of-nothing": (
        write("model_index.json", "{}"),
        "is a pipeline of another kind, which has no text-conditioned UNet of latents",
    ),
    "index-deep": (write("model_index.json", "[" * 9999 + "]" * 9999), "model_index.json is damaged: it is not JSON"),
    "index-not-utf8": (
        write("model_index.json", b'{"_class_name": "\xff"}'),
        "model_index.json is damaged: it is not JSON",
    ),
    "index-of-another": (
        write("model_index.json", '{"_class_name": "FluxPipeline"}'),
        "is a FluxPipeline, which has no text-conditioned UNet of latents",
    ),
    "index-a-pipe": (piped("model_index.json"), "is not a diffusers folder: it has no model_index.json"),
    "no-unet": (without("unet"), "unet/config.json is missing"),
    "unet-config-gone": (without("unet/config.json"), "unet/config.json is missing"),
    "unet-config-empty": (write("unet/config.json", ""), "unet/config.json is damaged: it is not JSON"),
    "unet-config-a-list": (write("unet/config.json", "[1]"), "unet/config.json is damaged: it holds no JSON object"),
    "unet-config-of-nothing": (write("unet/config.json", "{}"), "is a model with None input channels"),
    "unet-config-text": (
        write("unet/config.json", '{"block_out_channels": "many", "cross_attention_dim": 32}'),
        "is a model with None input channels",
    ),
    "unet-empty": (cut("unet", 0), "unet/diffusion_pytorch_model.safetensors is not a safetensors file"),
    "unet-half": (cut("unet", 0.5), "unet/diffusion_pytorch_model.safetensors is cut short: 1597476 of 3194952 bytes"),
    "no-vae": (without("vae"), "vae/config.json is missing"),
    "vae-config-cut": (
        write("vae/config.json", '{"latent_channels": 4,'),
        "vae/config.json is damaged: it is not JSON",
    ),
    "vae-half": (cut("vae", 0.5), "vae/diffusion_pytorch_model.safetensors is cut short: 197586 of 395172 bytes"),
    "no-text-encoder": (without("text_encoder"), "text_encoder/config.json is missing"),
    "text-config-cut": (write("text_encoder/config.json", "{"), "text_encoder/config.json is damaged: it is not JSON"),
    "text-half": (
        cut("text_encoder", 0.5),
        "text_encoder/model.safetensors is cut short: 3203180 of 6406360 bytes are there",
    ),
    "no-scheduler": (without("scheduler"), "scheduler/scheduler_config.json is missing"),
    "scheduler-cut": (
        write("scheduler/scheduler_config.json", '{"beta_start":'),
        "scheduler/scheduler_config.json is damaged: it is not JSON",
    ),
    "scheduler-a-list": (
        write("scheduler/scheduler_config.json", "[]"),
        "scheduler/scheduler_config.json is damaged: it holds no JSON object",
    ),
}

# what is only seen when the whole is read: the run has begun, and its log says why it ended
FOUND_BY_READING = {
    "unet-nan": (no_number, "no number"),
    "tokenizer-a-pipe": (piped("tokenizer/merges.txt"), "merges.txt cannot be read: a pipe, not a file"),
    "vocabulary-a-pipe": (piped("tokenizer/tokenizer.json"), "tokenizer.json cannot be read: a pipe, not a file"),
}
