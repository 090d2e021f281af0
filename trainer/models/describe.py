"""What a model is, told from its configurations or its file header alone: cheap, and before anything large is read.

`describe` answers for a hub id, a diffusers folder, a `.safetensors` file and "demo", or raises a `ConfigError` that says
what the thing is instead and what would work.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.files import hub
from trainer.files.regular import json_object
from trainer.files.safetensors_stream import Header, header
from trainer.models import clip_skip, windows
from trainer.models.base import Facts, Family, Source
from trainer.models.dit import recognise as transformers
from trainer.models.sd import recognise as stable
from trainer.models.sd.sd1 import DEMO, SD1
from trainer.models.sd.sd2 import SD2
from trainer.models.sd.sdxl import SDXL
from trainer.models.sound import AGAIN, WHAT_WORKS, understood
from trainer.models.vae import factor_of
from trainer.settings.config import Config

ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # of a scheduler of diffusers
FLOW = {
    "_class_name": "DPMSolverMultistepScheduler",  # diffusers' pipelines of UNets cannot draw with FlowMatchEuler...
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def describe(wanted: Source | str) -> tuple[Family, Facts]:
    """The family of a model (with the resolution its own configuration names) and its facts."""
    wanted = wanted if isinstance(wanted, Source) else Source(wanted)
    source, family, prediction_type = wanted.name, wanted.family, wanted.prediction_type
    path = Path(source).expanduser()
    with understood(source):
        if source == "demo":
            found, facts = _folder("demo", Path(str(resources.files("trainer").joinpath("assets/demo/model"))), source)
        elif path.is_dir():
            found, facts = _folder("folder", path, source)
        elif path.is_file() or path.suffix in (".safetensors", *PICKLES):
            found, facts = _file(path)
        elif hub.is_id(source):
            found, facts = _folder("hub", hub.configurations(source, wanted.revision), source)
        else:
            raise ConfigError(f"no model at {source!r}", "check the path; " + WHAT_WORKS)
    if family not in ("auto", found.name) and not (family == "sd1" and found.name == "demo"):
        raise ConfigError(
            f"{source} is {found.title}, not {family}",
            f"leave --family out, or set it to {'sd1' if found.name == DEMO.name else found.name}",
        )
    own = facts.prediction_type
    if prediction_type not in ("auto", own):
        facts = replace(facts, prediction_type=prediction_type, prediction_from="model.prediction_type")
        if prediction_type == "flow":  # the denoiser alone says nothing of how it was trained
            facts = replace(facts, configs=facts.configs | {"scheduler": FLOW})
        elif own == "flow":
            raise ConfigError(
                f"{source} is a flow-matching model, which predicts velocities along straight lines",
                "leave --prediction_type out",
            )
    return facts.family, facts


def guess(name: str) -> Family:
    """The family of a model that is not here, by the words in its name."""
    families = (*transformers.FAMILIES, SDXL, SD2, SD1)
    return next((family for family in families if any(word in name.lower() for word in family.words)), SD1)


def check_text(family: Family, config: Config) -> None:
    """ConfigError where a run asks more of the text encoders than they can be asked for in this family."""
    clip_skip.check(family, config.model.clip_skip)
    windows.check(family, config.model.max_token_length)
    if config.train.train_text_encoder and not family.trains_text:
        raise ConfigError(
            f"the text encoders of {family.title} are read once and not trained", "leave --train_text_encoder out"
        )


def check_weights(facts: Facts, variant: str | None = None) -> None:
    """Refuse a folder's missing and broken weights by their names and headers, before a run has begun."""
    for part in (part for part in facts.configs if part != "scheduler" and facts.kind == "folder"):
        place = facts.path / part
        files = sorted(place.glob("*.safetensors"))
        if not files:
            raise ConfigError(
                f"{place} has no .safetensors weights",
                "take a version of the model with safetensors files; pickled .bin files are not read",
            )
        there = {variant_of(file.name) for file in files}
        if variant not in there:
            named = ", ".join(sorted(f"--variant {name}" for name in there if name))
            raise ConfigError(
                f"{place} has no weights of the variant {variant!r}" if variant else f"{place} has only {named}",
                "leave --variant out" if None in there else f"add {named}",
            )
        for file in files:
            try:
                header(file)
            except ValueError as error:
                raise ConfigError(str(error), AGAIN) from error


def variant_of(name: str) -> str | None:
    """The variant in a file's name: model.fp16-00001-of-00002.safetensors is of "fp16", model.safetensors of none."""
    stem = re.sub(r"-\d+-of-\d+$", "", name.removesuffix(".safetensors"))
    return stem.partition(".")[2] or None


def _folder(kind: str, path: Path, source: str) -> tuple[Family, Facts]:
    index = path / "model_index.json"
    if not index.is_file():
        raise ConfigError(_what_lies_in(path, source), WHAT_WORKS)
    parts = json_object(index, AGAIN)
    room = transformers if "transformer" in parts else stable
    room.require_pipeline(source, parts)
    files = {part: path / part / "config.json" for part in room.PARTS if (parts.get(part) or [None])[0]}
    files["scheduler"] = path / "scheduler" / "scheduler_config.json"
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]} is missing", "copy or save the whole diffusers folder again")
    configs = {part: json_object(file, AGAIN) for part, file in files.items()}
    found = room.by_configuration(source, configs)
    prediction = room.scheduled(source, configs["scheduler"])
    return _facts(found, kind, path, (prediction, "the scheduler's configuration"), configs)


def _facts(
    found: Any, kind: str, path: Path, prediction: tuple[str, str], configs: dict[str, dict[str, Any]]
) -> tuple[Family, Facts]:
    """The family with the resolution that the model's own configuration names, and the facts. `prediction`: and where it
    was read."""
    side = configs[found.names.folder].get("sample_size")
    if side:
        found = replace(found, resolution=side * factor_of(configs["vae"]))
    return found, Facts(found, kind, path, *prediction, configs)


def _what_lies_in(path: Path, source: str) -> str:
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        return f"{source} holds an adapter (LoRA), not a model"
    if (path / "config.json").is_file():
        return f"{source} is one part of a model; model_index.json is in the folder above it"
    return f"{source} is not a diffusers folder: it has no model_index.json"


def _file(path: Path) -> tuple[Family, Facts]:
    if path.suffix in PICKLES:
        raise ConfigError(
            f"{path.name} is a pickle, which can run any program when it is opened",
            "convert it once where you trust it: "
            "python -c \"import torch, safetensors.torch as s; d = torch.load('in.ckpt', weights_only=True); "
            "s.save_file({k: v.contiguous() for k, v in d.get('state_dict', d).items() if hasattr(v, 'shape')}, 'out.safetensors')\"",
        )
    if not path.is_file():
        raise ConfigError(f"{path} is a pipe or a device" if path.exists() else f"no file {path}", "check the path")
    try:
        head = header(path)
    except ValueError as error:
        raise ConfigError(str(error), "download it again, and compare its size with the one the site names") from error
    ours = head.metadata.get("trainer.parts")  # our own export says it all, whatever its size
    configs = json.loads(ours) if ours else {}
    transformer = "transformer" in configs if ours else transformers.among(head.tensors)
    room = transformers if transformer else stable
    found = room.by_configuration(path.name, configs) if ours else room.by_tensors(path.name, head.tensors)
    configs = configs or found.configurations()
    if transformer:
        configs = {part: config for part, config in configs.items() if part not in found.only_in_folders}
        prediction = room.scheduled(path.name, configs["scheduler"]), f"the custom of {found.title}"
        return _facts(found, "file", path, prediction, configs)
    prediction = _prediction(path, head, found, configs)
    if "ztsnr" in head.tensors:
        configs["scheduler"] = configs["scheduler"] | ZERO_TERMINAL_SNR
    stable.base_is_smaller(found, prediction[0], configs)
    return _facts(found, "file", path, prediction, configs)


def _prediction(path: Path, head: Header, found: Any, configs: dict[str, Any]) -> tuple[str, str]:
    if "v_pred" in head.tensors:  # before the metadata: a mark stays when a merge copies another file's metadata
        return "v_prediction", "the file's v_pred mark"
    if "trainer.parts" in head.metadata:
        return stable.scheduled(path.name, configs["scheduler"]), "the file's metadata"
    said = head.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "epsilon"):
        return ("epsilon" if said == "epsilon" else "v_prediction"), "the file's metadata"
    return stable.prediction_by_weights(found, path, head.tensors)
