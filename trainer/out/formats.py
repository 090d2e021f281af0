"""How each export format lays the model out: which tensor goes where, under which key, with which files beside it.

A `File` is a plan, made from names and shapes alone; `export` streams tensors into it. Adding a format is a function here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.files import hub
from trainer.models import adapters
from trainer.models.base import Parts, loaded, persistent
from trainer.out import card as cards
from trainer.out import fused
from trainer.out.card import card

Change = Callable[[Tensor], Tensor]
NAMES = {  # of each format in the folder of an export
    "diffusers": "diffusers",
    "single_file": "model.safetensors",
    "lora_diffusers": "pytorch_lora_weights.safetensors",
    "lora_kohya": "lora_kohya.safetensors",
}


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass
class File:
    """One safetensors file of an export.

    target: the finished file or folder; inside: the file's place in that folder ("" when the target is the file)
    shapes: key -> shape, in the order of the file
    places: our full name -> [(key, first element, what is done to the tensor)]
    constants: keys whose value is not a trained tensor
    whole: keys of whole numbers, which no precision of the file changes
    finish: writes what stands beside it, given the (temporary) folder
    """

    format: str
    target: Path
    inside: str
    usage: str
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    places: dict[str, list[tuple[str, int, Change]]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, torch.dtype] = field(default_factory=dict)
    finish: Callable[[Path], None] = lambda folder: None

    def add(self, name: str, key: str, shape: tuple[int, ...], change: Change = same, first: int = 0) -> None:
        self.shapes[key] = shape
        self.places.setdefault(name, []).append((key, first, change))


def files(name: str, parts: Parts, folder: Path, precision: str, settings: dict[str, str]) -> Iterator[File]:
    """The files of one format: diffusers, single_file, lora_diffusers or lora_kohya."""
    make = {
        "diffusers": _diffusers,
        "single_file": _single_file,
        "lora_diffusers": _lora_diffusers,
        "lora_kohya": _lora_kohya,
    }[name]
    yield from make(parts, folder, precision, settings)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter names and shapes of the plain model, without adapters."""
    found = {}
    for name, parameter in module.named_parameters():
        if ".lora_" not in name:
            found[name.replace(".base_layer.", ".")] = tuple(parameter.shape)
    return found


# ---- diffusers folder


def _diffusers(parts: Parts, folder: Path, precision: str, settings: dict[str, str]) -> Iterator[File]:
    target = folder / NAMES["diffusers"]
    pipeline = parts.family.pipeline_class
    variant = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}[precision]
    scheduler, names = cards.scheduler(parts, settings), parts.family.names
    missing = "".join(f", {name}=None" for name in _left_out(parts))
    usage = f"{pipeline}.from_pretrained({str(target)!r}, torch_dtype={variant}{missing})"
    for model, module in parts.modules().items():
        file = File(
            "diffusers",
            target,
            f"{names.folders[model]}/{hub.stem(names.folders[model])}.safetensors",
            usage,
            card(parts, precision, settings, original=False),
        )
        # Transformers 5 flattened CLIPTextModel; files keep the older prefix, which every version reads.
        prefix = "text_model." if isinstance(module, CLIPTextModel) and not hasattr(module, "text_model") else ""
        for name, shape in _shapes(module).items():
            file.add(f"{model}.{name}", prefix + name, shape)
        for name, buffer in persistent(module).items():
            file.add(f"{model}.{name}", prefix + name, tuple(buffer.shape))
            if not buffer.is_floating_point():
                file.whole[prefix + name] = buffer.dtype
        if model == names.denoiser:
            file.finish = lambda place: _write_beside(parts, place, scheduler)
        yield file


def _left_out(parts: Parts) -> list[str]:
    """What a model of the family may have and this one has not: the pipeline of diffusers wants to be told of it."""
    names = parts.family.names
    there = {names.folders[model].replace("text_encoder", "tokenizer") for model in parts.modules()}
    text = [name for name in names.index if name.startswith(("text_encoder", "tokenizer"))]
    return [name for name in text if name.replace("text_encoder", "tokenizer") not in there]


def _write_beside(parts: Parts, place: Path, scheduler: dict[str, Any]) -> None:
    """Configurations, tokenizers, scheduler and the index of a diffusers folder.

    The text encoder's configuration always names float32: transformers obeys it where nobody names a precision, and a
    plain `from_pretrained` loads the other parts in float32. With float16 there the first picture ended in "Half and Float".
    """
    index: dict[str, Any] = {"_class_name": parts.family.pipeline_class, "_diffusers_version": diffusers.__version__}
    for model, module in parts.modules().items():
        folder, own = parts.family.names.folders[model], isinstance(module, diffusers.ModelMixin)
        config = dict(module.config) if own else module.config.to_dict()
        config = {
            key: value
            for key, value in config.items()
            if key not in ("_name_or_path", "_use_default_values", "dtype", "torch_dtype")
        }
        if own:
            config |= {"_class_name": type(module).__name__, "_diffusers_version": diffusers.__version__}
        else:
            config |= {"torch_dtype": "float32"}
        _json(place / folder / "config.json", config)
        index[folder] = ["diffusers" if own else "transformers", type(module).__name__]
    for name, tokenizer in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), parts.tokenizers, strict=False):
        save_tokenizer(tokenizer, place / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    _json(place / "scheduler" / "scheduler_config.json", scheduler | {"_diffusers_version": diffusers.__version__})
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    _json(place / "model_index.json", parts.family.names.index | index)


def save_tokenizer(tokenizer: Any, place: Path) -> None:
    """As transformers writes it; CLIP's as vocab.json, merges.txt and a tokenizer_config.json that its old and new versions
    both read."""
    if not isinstance(tokenizer, CLIPTokenizer):
        tokenizer.save_pretrained(place)
        return
    place.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _json(place / "vocab.json", model["vocab"], indent=None)
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": tokenizer.pad_token,
    }
    _json(place / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.model_max_length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    _json(place / "tokenizer_config.json", settings | special)


def _json(path: Path, value: Any, indent: int | None = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- one original checkpoint


def _single_file(parts: Parts, folder: Path, precision: str, settings: dict[str, str]) -> Iterator[File]:
    target, entries = folder / NAMES["single_file"], parts.family.layout(_plain(parts))
    metadata = card(parts, precision, settings) | {"trainer.parts": json.dumps(configurations(parts, settings))}
    held = {name.partition(".")[0] for entry in entries for name in entry.names}
    file = File("single_file", target, "", _usage(parts, folder, held, settings), metadata)
    for entry in entries:
        for name in entry.names:
            file.add(name, entry.key, entry.shape, entry.pack, entry.first(name))
    for mark in cards.marks(parts, settings):
        file.shapes[mark], file.constants[mark] = (0,), torch.empty(0)
    yield file


def _usage(parts: Parts, folder: Path, held: set[str], settings: dict[str, str]) -> str:
    """What to do with a single file that holds these parts."""
    target, names = folder / NAMES["single_file"], parts.family.names
    pipeline, config = parts.family.pipeline_class, f", config={str(folder / 'diffusers')!r}"
    if held == {names.denoiser} and len(parts.modules()) > 1:
        reader = f"{type(loaded(parts.denoiser)).__name__}.from_single_file({str(target)!r}{config}"
        return f"put {target} into ComfyUI's models/diffusion_models, or {reader}, subfolder={names.folder!r})"
    if not names.known:
        return f"{pipeline}.from_single_file({str(target)!r}{config})"
    usage = f"put {target} into ComfyUI's models/checkpoints, or {pipeline}.from_single_file({str(target)!r}"
    if not cards.unlike_the_rest(parts, settings):
        return f"{usage})"
    usage += f"{config}), which brings the scheduler that the weights need"
    if cards.is_flow(parts):
        return f"{usage}; ComfyUI needs its ModelSamplingSD3 node, which tells it of straight lines"
    if not names.marked:
        usage += "; ComfyUI needs its ModelSamplingDiscrete node (" + ", ".join(cards.marks(parts, settings)) + ")"
    return usage


def _plain(parts: Parts) -> dict[str, nn.Module]:
    """The modules as they are without adapters (on the meta device when they have some: only shapes matter here)."""
    if not adapters.injected(parts):
        return parts.modules()
    from trainer.models.load import empty

    configs, folders = configurations(parts), parts.family.names.folders
    return {model: empty(parts.family, folders[model], configs[folders[model]]) for model in parts.modules()}


def configurations(parts: Parts, settings: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What a reader of the file needs to know: the configuration of every part."""
    found: dict[str, Any] = {}
    for model, module in parts.modules().items():
        config = (
            dict(module.config)
            if isinstance(module, diffusers.ModelMixin)
            else module.config.to_diff_dict() | {"architectures": [type(module).__name__]}
        )
        found[parts.family.names.folders[model]] = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key not in ("dtype", "torch_dtype", "transformers_version")
        }
        if isinstance(module, diffusers.ModelMixin):
            found[parts.family.names.folders[model]]["_class_name"] = type(module).__name__
    found["scheduler"] = cards.scheduler(parts, settings)
    return found


# ---- adapters


def _lora_diffusers(parts: Parts, folder: Path, precision: str, settings: dict[str, str]) -> Iterator[File]:
    """peft's names below unet., text_encoder., text_encoder_2.; alpha / rank is multiplied into B, so that readers which
    take alpha = rank (the format does not carry it) are right."""
    target = folder / NAMES["lora_diffusers"]
    usage = f"pipeline.load_lora_weights({str(folder)!r})"
    metadata = card(parts, precision, settings, lora=True, original=False) | cards.network(parts, settings)
    file = File("lora_diffusers", target, "", usage, metadata)
    scales = adapters.scales(parts)
    for name, tensor in adapters.state_dict(parts).items():
        model, _, inner = name.partition(".")
        prefix = "text_model." if model == "text" and not hasattr(parts.text_encoders[0], "text_model") else ""
        change = _times(scales[adapters.module_of(name)][1]) if ".lora_B." in name else same
        if inner.endswith(".lora_magnitude_vector"):
            # without it transformers 5.23 drops DoRA's magnitudes of a text encoder, and OneTrainer all; peft reads both
            inner += ".weight"
        file.add(name, f"{parts.family.names.folders[model]}.{prefix}{inner}", tuple(tensor.shape), change)
    yield file


def _times(scale: float) -> Change:
    return lambda tensor: tensor * scale


def _lora_kohya(parts: Parts, folder: Path, precision: str, settings: dict[str, str]) -> Iterator[File]:
    """lora_unet_..., lora_te_... (lora_te1_, lora_te2_ for SDXL) with an alpha beside each; SDXL's UNet and transformers under
    their original names, where several layers may be one (fused.py)."""
    target = folder / NAMES["lora_kohya"]
    names, renamed = parts.family.names, parts.family.adapter_path(parts.denoiser)
    scales = adapters.scales(parts)
    inside = [name.partition(".")[2] for name in scales if name.startswith(f"{names.denoiser}.")]
    joint = fused.shares(loaded(parts.denoiser), renamed, inside)
    usage = f"put {target} into ComfyUI's models/loras"
    if adapters.is_dora(parts):
        # diffusers 0.42 leaves kohya's dora_scale out, and ComfyUI divides by the norms of the weight without the update:
        # weights came out 6e-3 off where training had moved them by 3.4e-2
        usage += "; programs differ in how they apply DoRA: for exactly what was trained, export single_file, too"
    elif names.kohya:
        usage += f", or pipeline.load_lora_weights({str(target)!r})"
    metadata = card(parts, precision, settings, lora=True) | cards.network(parts, settings)
    file = File("lora_kohya", target, "", usage, metadata)
    endings = {
        "lora_A.weight": "lora_down.weight",
        "lora_B.weight": "lora_up.weight",
        "lora_magnitude_vector": "dora_scale",
    }
    for name, tensor in adapters.state_dict(parts).items():
        model, _, inner = name.partition(".")
        path, ending = next(
            (inner.removesuffix(f".{old}"), new) for old, new in endings.items() if inner.endswith(f".{old}")
        )
        share = joint.get(path) if model == names.denoiser else None
        if model == names.denoiser:
            path = renamed(path)
        elif not path.startswith("text_model.") and path != "text_projection":
            path = f"text_model.{path}"
        key = f"{names.adapters[model]}_{path.replace('.', '_')}"
        # DoRA's magnitudes are a column there: one for each output row of the weight.
        shape = (
            (tensor.numel(), *(1,) * (_weight(parts, name).dim() - 1))
            if ending == "dora_scale"
            else tuple(tensor.shape)
        )
        if share is None:
            file.add(name, f"{key}.{ending}", shape)
        else:
            place = {"lora_down.weight": share.of_a, "lora_up.weight": share.of_b, "dora_scale": share.of_magnitudes}
            file.add(name, f"{key}.{ending}", *place[ending](tensor))
        if ending == "lora_down.weight":
            own_rank, own_scale = scales[adapters.module_of(name)]
            together = 1 if share is None else share.count
            file.shapes[f"{key}.alpha"] = ()
            file.constants[f"{key}.alpha"] = torch.tensor(float(own_rank * own_scale * together))
    yield file


def _weight(parts: Parts, name: str) -> Tensor:
    model, _, inner = name.partition(".")
    return parts.modules()[model].get_submodule(inner.removesuffix(".lora_magnitude_vector")).get_base_layer().weight
