"""What all flow-matching transformers have in common: a stack of blocks over the latents of a VAE, conditioned on text.

A family is one frozen value of `Transformer`, put together from three modules of its own: how its denoiser runs as units,
what prompts become, and what its tensors are called on disk. Families differ in these, in configurations and defaults, and
in the noise levels that training draws; whatever else the trainer asks is answered here for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from trainer.models.base import Defaults, Facts, Names, Parts, Source, loaded
from trainer.models.sound import understood
from trainer.objective.noise import Noise, refuse_rescaling
from trainer.units import Unit

Settings = dict[str, Any]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class Denoiser(Protocol):
    """A module of the package: one transformer of diffusers as units. `timestep` is 1000 times the noise level, and the
    answer the velocity from picture to noise, whatever the transformer itself is told and answers."""

    CLASS: Any

    def split(self, denoiser: nn.Module) -> list[Unit]: ...

    def call(self, denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor: ...

    def values_of(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]: ...


class Text(Protocol):
    """A module of the package: what prompts become. VALUES: the names of it; shapes: of the longest prompts, given the
    configurations of the parts by their folders."""

    VALUES: tuple[str, ...]

    def tokens(self, tokenizers: Sequence[Any], prompts: list[str]) -> dict[str, Tensor]: ...

    def encode(self, encoders: Sequence[nn.Module], tokens: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def split(self, encoders: Sequence[nn.Module]) -> list[Unit]: ...

    def shapes(self, configs: Mapping[str, Settings], rows: int) -> Shapes: ...

    def tokenizers(self, path: Path) -> list[Any]: ...

    def small_tokenizers(self) -> list[Any]: ...


class Disk(Protocol):
    """A module of the package: names in files. MARK: a tensor that single files of the family hold, and no others."""

    MARK: str

    def layout(self, modules: Mapping[str, nn.Module]) -> Sequence[Any]: ...

    def adapter_path(self, denoiser: nn.Module) -> Callable[[str], str]: ...


@dataclass(frozen=True)
class Transformer:
    """One family.

    encoders: class of each text encoder, by its folder in a model of diffusers; the last ones may be missing in a model
    schedule: (scheduler's configuration, size of pictures) -> what noises the latents
    fits:     of a denoiser's configuration of the right class, what speaks against the family; empty where nothing does
    only_in_folders: text encoders that a single file is read without, as it says nothing of their tokens
    told:     from the units' prediction to what the transformer itself answers, where that is something else
    pipelines_before: what the pipeline's class was called when public models were saved
    small:    what `tiny()` changes in the public configurations, by part
    """

    name: str
    title: str
    words: tuple[str, ...]
    defaults: Defaults
    pipeline_class: str
    export_gb: float
    names: Names
    denoiser: Denoiser = field(repr=False)
    text: Text = field(repr=False)
    disk: Disk = field(repr=False)
    encoders: Mapping[str, Any] = field(repr=False)
    schedule: Callable[[Mapping[str, Any], tuple[int, int]], Noise] = field(repr=False)
    fits: Callable[[Mapping[str, Any]], str] = field(repr=False)
    small: dict[str, Settings] = field(repr=False)
    told: Callable[[Tensor], Any] = field(default=lambda prediction: prediction, repr=False)
    vae: Any = field(default=AutoencoderKL, repr=False)
    only_in_folders: tuple[str, ...] = ()
    resolution: int = 1024
    empty_is_zeros: bool = False
    trains_text: bool = False
    pipelines_before: tuple[str, ...] = ()

    @property
    def classes(self) -> Mapping[str, Any]:
        return {self.names.folder: self.denoiser.CLASS, "vae": self.vae, **self.encoders}

    @property
    def text_values(self) -> tuple[str, ...]:
        return self.text.VALUES

    def config(self, part: str) -> Settings:
        """The public configuration of a part, by its folder, or of the "scheduler"."""
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads(resources.files("trainer").joinpath(f"assets/models/{self.name}/{part}/{file}").read_text())

    def configurations(self) -> dict[str, Settings]:
        """All of them, by part."""
        return {part: self.config(part) for part in (*self.classes, "scheduler")}

    def tiny(self, seed: int = 0) -> Parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            configs = {part: config | self.small.get(part, {}) for part, config in self.configurations().items()}
            return self._build(f"tiny-{self.name}-{seed}", configs)

    def meta(self) -> Parts:
        with torch.device("meta"):
            return self._build(f"meta-{self.name}", self.configurations())

    def public(self) -> Facts:
        return Facts(self, "public", Path(self.name), "flow", "the shipped configuration", self.configurations())

    def build_meta(self, facts: Facts) -> Parts:
        with torch.device("meta"), understood(str(facts.path)):
            return self._build(self.name, facts.configs)

    def _build(self, source: str, configs: Mapping[str, Settings]) -> Parts:
        return Parts(
            family=self,
            origin=Source(source),
            digest=source,
            denoiser=self.build(self.names.folder, configs[self.names.folder]),
            vae=self.build("vae", configs["vae"]),
            text_encoders=[self.build(part, configs[part]) for part in self.encoders if part in configs],
            tokenizers=self.text.small_tokenizers(),
            scheduler_config=configs["scheduler"],
            prediction_type="flow",
        )

    def build(self, folder: str, config: Settings) -> nn.Module:
        kind = self.classes[folder]
        if folder in self.encoders:
            left_out = ("model_type", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
            settings = {key: value for key, value in config.items() if key not in left_out}
            return kind(kind.config_class(**settings)).eval()
        return kind.from_config({key: value for key, value in config.items() if not key.startswith("_")}).eval()

    def read_tokenizers(self, path: Path) -> list[Any]:
        return self.text.tokenizers(path)

    def spelled(self, key: str, words: Container[str]) -> str:
        return key

    def units(self, parts: Parts, text: bool = False) -> list[Unit]:
        assert not text, "text encoders of this family are not trained"
        return self.denoiser.split(loaded(parts.denoiser))

    def text_units(self, parts: Parts) -> list[Unit]:
        return self.text.split(parts.text_encoders)

    def tokens(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        device = parts.text_encoders[0].device if parts.text_encoders else torch.device("cpu")
        return {name: ids.to(device) for name, ids in self.text.tokens(parts.tokenizers, prompts).items()}

    @torch.no_grad()
    def encode_text(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        return self.text.encode(parts.text_encoders, self.tokens(parts, prompts))

    def noise(
        self, schedule: Mapping[str, Any], prediction: str, zero_terminal_snr: bool, size: tuple[int, int]
    ) -> Noise:
        if zero_terminal_snr:
            refuse_rescaling()
        return self.schedule(schedule, size)

    def extra_values(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int], batch: int
    ) -> dict[str, Tensor]:
        return {}

    def call(self, denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return self.denoiser.call(denoiser, sample, timestep, values)

    def values_of(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.denoiser.values_of(*args, **kwargs)

    def answer(self, prediction: Tensor) -> Any:
        return self.told(prediction)

    def inputs(self, parts: Parts, rows: int, size: tuple[int, int], text: bool) -> Shapes:
        kind, configs = parts.latents, {}
        for part, module in parts.modules().items():
            own = module.config
            configs[self.names.folders[part]] = own.to_dict() if hasattr(own, "to_dict") else dict(own)
        sample = (rows, kind.channels, size[1] // kind.factor, size[0] // kind.factor)
        given = {"sample": (sample, torch.float32), "timestep": ((rows,), torch.float32)}
        return given | self.text.shapes(configs, rows)

    def denoise(self, parts: Parts, values: dict[str, Tensor]) -> Tensor:
        if self.text.VALUES[0] not in values:
            values = values | self.text.encode(parts.text_encoders, values)
        return self.call(parts.denoiser, values["sample"], values["timestep"], values)

    def layout(self, modules: Mapping[str, nn.Module]) -> Sequence[Any]:
        return self.disk.layout(modules)

    def adapter_path(self, denoiser: nn.Module) -> Callable[[str], str]:
        return self.disk.adapter_path(denoiser)

    def pipeline(self, parts: Parts, **overrides: Any) -> diffusers.DiffusionPipeline:
        schedule = parts.scheduler_config
        modules = {
            self.names.folder: parts.denoiser,
            "vae": parts.vae,
            "scheduler": getattr(diffusers, schedule["_class_name"]).from_config(schedule),
        }
        for number, folder in enumerate(self.encoders):  # None where they were not loaded
            modules[folder] = parts.text_encoders[number] if number < len(parts.text_encoders) else None
            tokenizer = folder.replace("text_encoder", "tokenizer")
            modules[tokenizer] = parts.tokenizers[number] if number < len(parts.tokenizers) else None
        extra = {key: None if isinstance(value, list) else value for key, value in self.names.index.items()}
        return getattr(diffusers, self.pipeline_class)(**extra | modules | overrides)
