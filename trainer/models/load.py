"""Load a model's parts from where they are: the hub, a diffusers folder, one original checkpoint, or the demo model.

A single file needs no network: the configurations and the vocabulary are ours, and the key map of `ldm` names its tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn

from trainer.errors import ConfigError
from trainer.files import hub, regular
from trainer.files.regular import json_object
from trainer.files.safetensors_stream import header
from trainer.models import clip_skip
from trainer.models.base import Facts, Family, Parts, Source, persistent
from trainer.models.describe import PICKLES, describe, variant_of
from trainer.models.sd import ldm
from trainer.models.sound import AGAIN, require_numbers
from trainer.models.windows import widened
from trainer.settings.config import Model

ALL = ("denoiser", "vae", "text", "tokenizer")
WHOLE_BYTES = 64 * 2**20  # files up to this size are hashed whole
EDGE_BYTES = 2**20
SCALE = 0.18215  # of latents, where a VAE's configuration says nothing


def load(source: Source | str, *, parts: Sequence[str] = ALL, dtype: torch.dtype | None = torch.float32) -> Parts:
    """Load `parts` of `source` (its name alone, where nothing else is to be said) in `dtype` on the CPU, in eval mode.

    `dtype` None: every part as its file has it. Its tensors then lie in the file and take no memory (see mapped.py).
    """
    for library in (diffusers, transformers):  # the screen has bars of its own
        library.utils.logging.disable_progress_bar()
    source = source if isinstance(source, Source) else Source(source)
    found, facts = describe(source)
    encoders = [folder for each in found.names.encoders if (folder := found.names.folders[each]) in facts.configs]
    wanted = [found.names.folder] if "denoiser" in parts else []
    wanted += ["vae"] if "vae" in parts and not source.vae else []
    wanted += encoders if "text" in parts else []
    path = hub.weights(source.name, source.revision, source.variant, wanted) if facts.kind == "hub" else facts.path
    modules = (
        _from_file(path, found, facts, wanted, dtype)
        if facts.kind == "file"
        else _from_folder(path, found, wanted, dtype, source.variant)
    )
    if source.vae and "vae" in parts:
        modules["vae"] = _another_vae(source.vae, facts, dtype)
    require_numbers(modules, source.name)
    for module in modules.values():
        module.eval().requires_grad_(True)
    return Parts(
        family=found,
        origin=source,
        digest=_of_hub(source, path.name) if facts.kind == "hub" else digest(path, source.vae),
        denoiser=modules.get(found.names.folder),
        vae=modules.get("vae"),
        text_encoders=[modules[part] for part in encoders if part in modules],
        tokenizers=found.read_tokenizers(path) if "tokenizer" in parts else [],
        scheduler_config=facts.configs["scheduler"],
        prediction_type=facts.prediction_type,
    )


def load_for(settings: Model) -> Parts:
    """The model that the settings name (or the built-in one), every part as its file has it: the weights lie in the file
    and take no memory until a module visits or the engine has its own."""
    return read_as(load(Source.of(settings), dtype=None), settings)


def read_as(parts: Parts, settings: Model) -> Parts:
    """The same parts, reading prompts as the settings say: without the text encoder's last layers, in several windows."""
    return widened(clip_skip.shortened(parts, settings.clip_skip), settings.max_token_length)


def _from_folder(
    path: Path, family: Family, wanted: list[str], dtype: torch.dtype | None, variant: str | None
) -> dict[str, nn.Module]:
    modules = {}
    for part in wanted:
        place = path / part
        if place.is_dir():
            regular.only_files(place, AGAIN)
        if not any(place.glob("*.safetensors")):
            raise ConfigError(
                f"{place} has no .safetensors weights",
                "take a version of the model with safetensors files; pickled .bin files are not read",
            )
        try:
            modules[part] = family.classes[part].from_pretrained(
                place,
                torch_dtype=dtype or _stored(place, variant),
                use_safetensors=True,
                variant=variant,
                local_files_only=True,
            )
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(
                f"the weights in {place} cannot be read: {str(error).splitlines()[0]}",
                "copy or download them again; check model.variant",
            ) from error
    return modules


def _stored(place: Path, variant: str | None = None) -> torch.dtype:
    """The precision of a part's files; where several variants lie there, of the one that will be read."""
    files = sorted(place.glob("*.safetensors"))
    mine = [file for file in files if variant_of(file.name) == variant]
    return widest(word for file in mine or files for word, _ in header(file).tensors.values())


def widest(words: Iterable[str]) -> torch.dtype:
    """The precision that holds all of a file's floating-point tensors, given their dtypes in safetensors' words."""
    kinds = {word for word in words if word.startswith(("F", "BF"))}
    return {frozenset({"F16"}): torch.float16, frozenset({"BF16"}): torch.bfloat16}.get(frozenset(kinds), torch.float32)


def empty(family: Family, folder: str, config: dict[str, Any]) -> nn.Module:
    """One part without memory for its parameters; its small buffers are real."""
    with init_empty_weights(include_buffers=False):
        return family.build(folder, config)


def _from_file(
    path: Path, family: Family, facts: Facts, wanted: list[str], dtype: torch.dtype | None
) -> dict[str, nn.Module]:
    """Fill the modules from an original checkpoint, tensor by tensor."""
    modules = {part: empty(family, part, facts.configs[part]) for part in wanted}
    names = {folder: part for part, folder in family.names.folders.items()}
    for part, module in modules.items():
        try:
            tensors = _read(path, family.layout({names[part]: module}), dtype, family.spelled)
        except KeyError as error:
            no_vae = str(error.args[0]).startswith(ldm.VAE)
            raise ConfigError(
                f"{path.name} is incomplete: it has no " + ("VAE" if no_vae else f"tensor {error.args[0]}"),
                "take the full checkpoint" + (", or name a VAE with model.vae" if no_vae else ""),
            ) from error
        _fill(module, names[part], tensors, path)
    return modules


def _read(
    path: Path,
    entries: Sequence[ldm.Entry],
    dtype: torch.dtype | None,
    spelled: Callable[[str, Container[str]], str],
) -> dict[str, torch.Tensor]:
    """Our named tensors from a checkpoint that has the entries' keys as `spelled` says, in `dtype` or as one precision
    holds them all. KeyError names the first that is missing."""
    tensors: dict[str, torch.Tensor] = {}
    words = {name: word for name, (word, _) in header(path).tensors.items()}
    keys = [spelled(entry.key, words) for entry in entries]
    for entry, key in zip(entries, keys, strict=True):
        if key not in words:
            raise KeyError(entry.key)
    dtype = dtype or widest(words[key] for key in keys)
    with safe_open(path, "pt") as file:
        for entry, key in zip(entries, keys, strict=True):
            stored = file.get_tensor(key).to(dtype)
            tensors |= {name: tensor.contiguous() for name, tensor in entry.unpack(stored).items()}
    return tensors


def _fill(module: nn.Module, model: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put the tensors into the empty module without copying. A 1x1 convolution may be stored as a matrix, or the reverse."""
    state = {}
    for name, parameter in (dict(module.named_parameters()) | persistent(module)).items():
        tensor = tensors.pop(f"{model}.{name}")
        if tensor.numel() != parameter.numel() or tensor.shape[:2] != parameter.shape[:2]:
            raise ConfigError(
                f"{path.name}: {model}.{name} has shape {tuple(tensor.shape)}, and the family's is {tuple(parameter.shape)}",
                "use a checkpoint with the family's own layout, or give a diffusers folder, which brings its configuration",
            )
        state[name] = tensor.reshape(parameter.shape).to(
            tensor.dtype if parameter.is_floating_point() else parameter.dtype
        )
    module.load_state_dict(state, assign=True, strict=False)
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # an embedding that has two names is stored under one
    assert not any(parameter.is_meta for parameter in module.parameters()), "a parameter that no tensor filled"


def check_vae(source: str, facts: Facts) -> None:
    """ConfigError where there is no VAE at `source` for this model; of one on the hub only the configuration is fetched."""
    path = Path(source).expanduser()
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path.name} is a pickle, which can run any program when it is opened",
            "take the VAE as a .safetensors file, or as a folder with config.json",
        )
    if path.suffix == ".safetensors" and path.is_file():
        return
    on_hub = not path.is_dir() and hub.is_id(source)
    place = hub.small(source, hub.VAE) if on_hub else _vae_folder(path, source)
    config = next((file for file in (place / "config.json", place / "vae" / "config.json") if file.is_file()), None)
    if config is not None:
        _require_scale(json_object(config, AGAIN), facts, source)


def _another_vae(source: str, facts: Facts, dtype: torch.dtype | None) -> nn.Module:
    """A VAE from its own folder, a `vae` subfolder, a file in the original key names, or the hub.

    Its latents are scaled as the denoiser knows them: SDXL's by 0.13025, those of 1.x and 2.x by 0.18215. A file does not
    say, and a folder of before 2023 may not, so the model's own number holds.
    """
    path = Path(source).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        return _vae_file(path, facts.family, facts.configs["vae"], dtype)
    if not path.is_dir() and hub.is_id(source):
        path = hub.fetch(
            source,
            None,
            [
                "config.json",
                "vae/config.json",
                "diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
            ],
            hub.VAE,
        )
    place = _vae_folder(path, source)
    regular.only_files(place, AGAIN)
    scale = _require_scale(json_object(place / "config.json", AGAIN), facts, source)
    dtype = dtype or _stored(place)
    kind = facts.family.classes["vae"]
    vae = kind.from_pretrained(place, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    if "scaling_factor" in vae.config:
        vae.register_to_config(scaling_factor=scale)
    return vae


def _require_scale(config: dict[str, Any], facts: Facts, source: str) -> float:
    """The model's scale of latents. Raises ConfigError where a VAE says that its latents have another, or other channels."""
    own = facts.configs["vae"]
    channels = [each.get("latent_channels", 4) for each in (config, own)]
    if channels[0] != channels[1]:
        raise ConfigError(
            f"the VAE at {source!r} makes latents of another kind ({channels[0]} channels, and {channels[1]} are the model's)",
            f"name a VAE that was made for {facts.family.title}, or leave --vae out",
        )
    wanted = own.get("scaling_factor", SCALE)
    told = config.get("scaling_factor", wanted)
    if abs(told - wanted) > 1e-6:
        raise ConfigError(
            f"the VAE at {source!r} makes latents of another kind (scaling_factor {told}, and {wanted} is the model's)",
            f"name a VAE that was made for {facts.family.title}, or leave --vae out",
        )
    return wanted


def _vae_folder(path: Path, source: str) -> Path:
    place = next(
        (each for each in (path, path / "vae") if (each / "config.json").is_file() and any(each.glob("*.safetensors"))),
        None,
    )
    if place is None:
        raise ConfigError(
            f"no VAE at {source!r}",
            "give a folder with config.json and diffusion_pytorch_model.safetensors, or a hub id",
        )
    return place


def _vae_file(path: Path, family: Family, config: dict[str, Any], dtype: torch.dtype | None) -> nn.Module:
    """A VAE of the model's own kind in the original key names, alone (`encoder.down...`) or inside a checkpoint
    (`first_stage_model....`)."""
    module, names = empty(family, "vae", config), header(path).tensors
    if any(name.startswith("encoder.down_blocks.") for name in names):
        raise ConfigError(
            f"{path.name} is a VAE in diffusers' key names", f"name the folder that has its config.json: {path.parent}"
        )
    before = "" if f"{ldm.VAE}encoder.conv_in.weight" in names else ldm.VAE
    try:
        tensors = _read(path, family.layout({"vae": module}), dtype, lambda key, words: key.removeprefix(before))
    except KeyError as error:
        raise ConfigError(
            f"{path.name} is not a VAE of Stable Diffusion ({error.args[0]} is missing)",
            "give a folder with config.json, or a .safetensors VAE in the original key names",
        ) from error
    _fill(module, "vae", tensors, path)
    return module


def _of_hub(source: Source, commit: str) -> str:
    """A hub model's digest: its id, commit, variant and VAE. Which of its files are here says nothing."""
    words = (source.name, commit, source.variant or "", source.vae or "")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def digest(path: Path, vae: str | None = None) -> str:
    """A name for the weights: sha256 over every safetensors file's name, size and bytes.

    Of a file above 64 MiB only the first and last MiB are read, which hold weights that fine-tuning changes.
    """
    hashed = hashlib.sha256((vae or "").encode())
    files = [path] if path.is_file() else sorted(path.glob("*/*.safetensors"))
    for file in files:
        size = file.stat().st_size
        hashed.update(f"{file.parent.name}/{file.name} {size}".encode())
        with regular.opened(file) as opened:
            if size <= WHOLE_BYTES:
                while block := opened.read(EDGE_BYTES):
                    hashed.update(block)
            else:
                hashed.update(opened.read(EDGE_BYTES))
                opened.seek(-EDGE_BYTES, 2)
                hashed.update(opened.read())
    return hashed.hexdigest()[:32]
