"""LoRA and DoRA: small trainable matrices beside frozen ones.

    LoRA:  W' = W + (alpha / rank) B A                                  (arXiv 2106.09685)
    DoRA:  W' = m (W + (alpha / rank) B A) / ||W + (alpha / rank) B A||   (arXiv 2402.09353), norm per output row

A starts random and B at zero, so training starts from the model itself. peft does the work; this file decides what gets
an adapter, in which precision, and under which names it is saved: "unet.down_blocks.0....to_q.lora_A.weight". It asks
peft itself and never transformers' or diffusers' `add_adapter`: those check peft's version against their own next release.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.files.mapped import forget
from trainer.machine import libraries
from trainer.models.base import Parts
from trainer.settings.config import Lora

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"  # peft's own name for the only adapter; it is left out of saved names


def available() -> None:
    """ConfigError where peft is missing or does not load."""
    libraries.need("adapters need", "peft", "train all weights (--method full)")


def inject(
    parts: Parts,
    settings: Lora,
    *,
    dora: bool = False,
    text: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> int:
    """Freeze the model and put adapters into the denoiser, and into the text encoders when `text`; their parameter count.

    Call before `Family.units`, which must see the injected modules. Only here is peft imported: nothing else needs it.
    """
    available()
    from peft import inject_adapter_in_model

    for module in parts.modules().values():
        module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        used = _used(parts, text)
        for name, model in _adapted(parts, text):
            draws = model is parts.denoiser
            targets = (settings.targets or [*parts.family.defaults.targets]) if draws else settings.text_targets
            own = settings if draws else settings.model_copy(update={"conv_rank": None})  # text encoders have none
            _check_targets(model, targets, draws)
            with _wide(model, targets, dora):
                inject_adapter_in_model(_config(model, name, targets, own, used, dora), model, ADAPTER)
    for _, parameter in trainable(parts):
        parameter.data = parameter.data.to(dtype)
    dropout(parts, True)
    return sum(parameter.numel() for _, parameter in trainable(parts))


def _used(parts: Parts, text: bool) -> set[str]:
    """The parameters that a step reads: SDXL never looks at its first text encoder's last layer, and an adapter there
    would be neither trained nor saved."""
    return {name for unit in parts.family.units(parts, text) for name, _ in unit.module.named_parameters()}


def _config(model: nn.Module, name: str, targets: list[str], settings: Lora, used: set[str], dora: bool) -> LoraConfig:
    """peft's settings for one model. Convolutions wider than one pixel may have a rank and an alpha of their own."""
    found = {inner: module for inner, module in model.named_modules() if _targeted(inner, targets)}
    wide = {
        re.escape(inner): module
        for inner, module in found.items()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    }
    from peft import LoraConfig

    rank, conv = settings.rank, settings.conv_rank
    if conv is not None and not wide:
        raise ConfigError(
            "lora.conv_rank has no convolution to act on", "add some to --targets (conv1 conv2), or leave it out"
        )
    return LoraConfig(
        r=rank,
        lora_alpha=settings.alpha or rank,
        rank_pattern=dict.fromkeys(wide, conv) if conv is not None else {},
        alpha_pattern=dict.fromkeys(wide, settings.conv_alpha or conv) if conv is not None else {},
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=[inner for inner in found if f"{name}.{inner}.weight" not in used] or None,
        use_dora=dora,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )


def _targeted(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith("." + target) for target in targets)


@contextmanager
def _wide(model: nn.Module, targets: list[str], values: bool) -> Iterator[None]:
    """peft rounds a new adapter to the precision of the weight beside it, and with it DoRA's magnitudes, which are that
    weight's norms. So the weights appear in fp32 meanwhile: as copies where `values` are read, else as shapes alone."""
    found = [
        parameter
        for name, module in model.named_modules()
        if _targeted(name, targets)
        for parameter in module.parameters()
        if parameter.dtype in (torch.float16, torch.bfloat16) and not parameter.is_meta
    ]
    homes = [parameter.data for parameter in found]
    for parameter, home in zip(found, homes, strict=True):
        parameter.data = home.float() if values else torch.zeros(1).expand(home.shape)
    try:
        yield
    finally:
        for parameter, home in zip(found, homes, strict=True):
            parameter.data = home
            forget(home)


def dropout(parts: Parts, active: bool) -> None:
    """Switch the adapters' dropout on (training) or off (pictures, held-out losses); everything else stays in eval mode."""
    for _, layer in layers(parts):
        layer.lora_dropout.train(active)


def _adapted(parts: Parts, text: bool) -> list[tuple[str, nn.Module]]:
    return [
        (name, model)
        for name, model in parts.modules().items()
        if model is parts.denoiser or (text and model is not parts.vae)
    ]


def _check_targets(model: nn.Module, targets: list[str], draws: bool) -> None:
    named = dict(model.named_modules())
    kinds = {type(module).__name__ for module in named.values() if isinstance(module, (nn.Linear, nn.Conv2d))}
    setting, whose = ("lora.targets", "denoiser") if draws else ("lora.text_targets", "text encoder")
    usual = ", ".join(_endings(named))
    for target in targets:
        found = [module for name, module in named.items() if _targeted(name, [target])]
        if not found:
            raise ConfigError(f"{setting}: no module of the {whose} is called {target!r}", f"use names such as {usual}")
        if not any(isinstance(module, (nn.Linear, nn.Conv2d)) for module in found):  # others of the name get none
            raise ConfigError(
                f"{setting}: {target!r} is a {type(found[0]).__name__}",
                f"name modules that are {' or '.join(sorted(kinds))}",
            )


def _endings(named: Mapping[str, nn.Module]) -> list[str]:
    """What names of modules that can be adapted end with, the most frequent ones: "to_q", "to_out.0", "net.0.proj"."""
    counts: Counter[str] = Counter()
    for name, module in named.items():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            words = name.split(".")
            last = max(index for index, word in enumerate(words) if not word.isdigit())
            counts[".".join(words[last:])] += 1
    return [ending for ending, _ in counts.most_common(10)]


def trainable(parts: Parts) -> Iterator[tuple[str, nn.Parameter]]:
    """(full name, parameter) of everything that learns."""
    for prefix, module in parts.modules().items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{prefix}.{name}", parameter


def saved_name(name: str) -> str:
    """The name under which an adapter's parameter is saved: without peft's adapter name (and DoRA's inner module)."""
    if f".lora_magnitude_vector.{ADAPTER}" in name:
        return name.split(f".{ADAPTER}")[0]
    return name.replace(f".{ADAPTER}.", ".")


def state_dict(parts: Parts) -> dict[str, Tensor]:
    """The adapters' tensors by saved name (shared storage)."""
    return {saved_name(name): parameter.data for name, parameter in _parameters(parts)}


def load_state_dict(parts: Parts, tensors: dict[str, Tensor]) -> None:
    """Copy saved tensors into the injected adapters; names must match exactly."""
    own = {saved_name(name): parameter for name, parameter in _parameters(parts)}
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ConfigError(
            f"the adapter does not fit: {len(odd)} tensors differ, such as {odd[0]}",
            "use the rank, targets, method and train_text_encoder that it was trained with",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}",
                    "use the rank that it was trained with",
                )
            parameter.copy_(tensors[name])


def _parameters(parts: Parts) -> Iterator[tuple[str, nn.Parameter]]:
    for prefix, module in parts.modules().items():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                yield f"{prefix}.{name}", parameter


def layers(parts: Parts) -> Iterator[tuple[str, LoraLayer]]:
    """(full name, layer) of every adapted module."""
    for prefix, module in parts.modules().items():
        for name, layer in _adapted_layers(module):
            yield f"{prefix}.{name}", layer


def _adapted_layers(module: nn.Module) -> list[tuple[str, LoraLayer]]:
    """The adapted modules inside `module`: none where peft was never imported."""
    peft = sys.modules.get("peft.tuners.lora")
    if peft is None:
        return []
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, peft.LoraLayer)]


def injected(parts: Parts) -> bool:
    return next(layers(parts), None) is not None


def is_dora(parts: Parts) -> bool:
    return any(".lora_magnitude_vector" in name for name, _ in _parameters(parts))


def scales(parts: Parts) -> dict[str, tuple[int, float]]:
    """(rank, alpha / rank) of every adapted module by its full name; convolutions may have their own."""
    return {name: (layer.r[ADAPTER], layer.scaling[ADAPTER]) for name, layer in layers(parts)}


def module_of(name: str) -> str:
    """The full name of the module that a saved tensor adapts: "unet....to_q" of "unet....to_q.lora_A.weight"."""
    return name.partition(".lora_")[0]


def merged(parts: Parts, values: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(full name, fp32 tensor) of the plain model with the adapters folded in, one layer at a time.

    `values`: adapter tensors by saved name instead of those in `parts`, which stay as they are either way.
    """
    for prefix, module in parts.modules().items():
        folded = [name for name, _ in _adapted_layers(module)]
        for name in folded:
            layer = copy.deepcopy(module.get_submodule(name)).float()
            if values is not None:
                for inner, parameter in layer.named_parameters():
                    if "lora_" in inner:
                        parameter.data = (
                            values[saved_name(f"{prefix}.{name}.{inner}")].detach().to(parameter.device, torch.float32)
                        )
            layer.merge()
            for part, tensor in layer.get_base_layer().named_parameters():
                yield f"{prefix}.{name}.{part}", tensor.detach()
        inside = tuple(f"{name}." for name in folded)
        for name, parameter in module.named_parameters():
            if not inside or not name.startswith(inside):
                yield f"{prefix}.{name}", parameter.detach().float()
                forget(parameter)


def remove(parts: Parts) -> None:
    """Take the adapters out again: the model as it was before `inject`."""
    for module in parts.modules().values():
        names = [name for name, _ in _adapted_layers(module)]
        for name in names:
            module.set_submodule(name, module.get_submodule(name).get_base_layer())
        if names:
            del module.peft_config
