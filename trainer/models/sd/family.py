"""What all Stable Diffusion families have in common: a CLIP-conditioned UNet over the latents of a VAE.

A family is one frozen value of `StableDiffusion`; families differ in configurations, defaults and, for SDXL, in a
second text encoder and size conditioning, which the UNet's own configuration announces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer.files import regular
from trainer.models.base import Defaults, Facts, Names, Parts, Source
from trainer.models.sd import ldm, units
from trainer.models.sd.text import LENGTH, encode, tokenize, tokenizer
from trainer.models.sd.text import split as split_text
from trainer.models.sound import AGAIN, understood
from trainer.objective import noise
from trainer.objective.noise import Noise
from trainer.units import Unit

Settings = dict[str, Any]
CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
NAMES = Names(  # of 1.x
    denoiser="unet",
    folders={"unet": "unet", "vae": "vae", "text": "text_encoder", "text_2": "text_encoder_2"},
    index={
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    },
    adapters={"unet": "lora_unet", "text": "lora_te"},
    bases=("sd_v1", "sd_v1"),
    architectures=("stable-diffusion-v1", "stable-diffusion-v1"),
    source="https://github.com/CompVis/stable-diffusion",
    marked=False,
)


@dataclass(frozen=True)
class StableDiffusion:
    """One family.

    folder: where its public configurations lie, below `assets/models`
    pads:   padding token of each tokenizer; as many as there are text encoders
    small:  what `tiny()` changes in those configurations, by part
    """

    name: str
    title: str
    words: tuple[str, ...]
    resolution: int
    defaults: Defaults
    folder: str
    pads: tuple[str, ...]
    pipeline_class: str
    export_gb: float
    small: dict[str, Settings] = field(repr=False)
    names: Names = NAMES

    @property
    def classes(self) -> Mapping[str, Any]:
        return CLASSES

    @property
    def trains_text(self) -> bool:
        return True

    @property
    def text_values(self) -> tuple[str, ...]:
        return ("text", "pooled")[: len(self.pads)]

    @property
    def empty_is_zeros(self) -> bool:
        return len(self.pads) > 1  # as SDXL's pipeline has it

    def config(self, part: str) -> Settings:
        """The public configuration of "unet", "vae", "text_encoder", "text_encoder_2" or "scheduler"."""
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        return json.loads(resources.files("trainer").joinpath(f"assets/models/{self.folder}/{part}/{file}").read_text())

    def configurations(self) -> dict[str, Settings]:
        """All of them, by part."""
        parts = ("unet", "vae", "text_encoder", "text_encoder_2")[: 2 + len(self.pads)]
        return {part: self.config(part) for part in (*parts, "scheduler")}

    def tiny(self, seed: int = 0) -> Parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._build(f"tiny-{self.name}-{seed}", self.small)

    def meta(self) -> Parts:
        with torch.device("meta"):
            return self._build(f"meta-{self.name}", {})

    def public(self) -> Facts:
        configs = self.configurations()
        prediction = configs["scheduler"]["prediction_type"]
        return Facts(self, "public", Path(self.name), prediction, "the shipped configuration", configs)

    def build_meta(self, facts: Facts) -> Parts:
        with torch.device("meta"), understood(str(facts.path)):
            return self._build(self.name, facts.configs)

    def _build(self, source: str, changes: dict[str, Settings]) -> Parts:
        def config(part: str) -> Settings:
            return self.config(part) | changes.get(part, {})

        encoders = [self.build(part, config(part)) for part in ("text_encoder", "text_encoder_2")[: len(self.pads)]]
        scheduler = config("scheduler")
        return Parts(
            family=self,
            origin=Source(source),
            digest=source,
            denoiser=self.build("unet", config("unet")),
            vae=self.build("vae", config("vae")),
            text_encoders=encoders,
            tokenizers=[tokenizer(pad) for pad in self.pads],
            scheduler_config=scheduler,
            prediction_type=scheduler["prediction_type"],
        )

    def build(self, folder: str, config: Settings) -> nn.Module:
        if folder.startswith("text_encoder"):
            return build_encoder(config)
        return CLASSES[folder].from_config({key: value for key, value in config.items() if key != "_class_name"}).eval()

    def read_tokenizers(self, path: Path) -> list[CLIPTokenizer]:
        made = []
        for folder, pad in zip(("tokenizer", "tokenizer_2"), self.pads, strict=False):
            place = path / folder
            if place.is_dir():
                regular.only_files(place, AGAIN)
            own = (place / "vocab.json").is_file() or (place / "tokenizer.json").is_file()
            with understood(str(place)):
                made.append(CLIPTokenizer.from_pretrained(place, local_files_only=True) if own else tokenizer(pad))
        return made

    def spelled(self, key: str, words: Container[str]) -> str:
        """Checkpoints of 1.x made before 2023 lack the level text_model in the text encoder."""
        older = key.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
        return older if key not in words and older in words else key

    def units(self, parts: Parts, text: bool = False) -> list[Unit]:
        return (self.text_units(parts) if text else []) + units.split(parts.denoiser)

    def text_units(self, parts: Parts) -> list[Unit]:
        return split_text(parts.text_encoders, parts.windows)

    def tokens(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        device = parts.text_encoders[0].device if parts.text_encoders else torch.device("cpu")
        return {name: ids.to(device) for name, ids in tokenize(parts.tokenizers, prompts, parts.windows).items()}

    @torch.no_grad()
    def encode_text(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        return encode(parts.text_encoders, self.tokens(parts, prompts))

    def noise(
        self, schedule: Mapping[str, Any], prediction: str, zero_terminal_snr: bool, size: tuple[int, int]
    ) -> Noise:
        return noise.of(schedule, prediction, zero_terminal_snr)

    def extra_values(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int], batch: int
    ) -> dict[str, Tensor]:
        if len(self.pads) == 1:
            return {}
        sizes = torch.tensor([*original_size, *crop_top_left, *target_size], dtype=torch.float32)
        return {"time_ids": sizes.repeat(batch, 1)}  # (B, 6)

    def call(self, denoiser: nn.Module, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        added = {"text_embeds": values["pooled"], "time_ids": values["time_ids"]} if "time_ids" in values else None
        return denoiser(sample, timestep, values["text"], added_cond_kwargs=added, return_dict=False)[0]

    def values_of(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        **ignored: Any,
    ) -> dict[str, Tensor]:
        assert not any(value is not None for value in ignored.values()), f"unknown conditions {sorted(ignored)}"
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        values = {"sample": sample, "timestep": timestep, "text": encoder_hidden_states}
        if added_cond_kwargs:
            values |= {"pooled": added_cond_kwargs["text_embeds"], "time_ids": added_cond_kwargs["time_ids"]}
        return values

    def answer(self, prediction: Tensor) -> Tensor:
        return prediction

    def inputs(
        self, parts: Parts, rows: int, size: tuple[int, int], text: bool
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        factor, config, real, whole = parts.latents.factor, parts.denoiser.config, torch.float32, torch.int64
        length = LENGTH * parts.windows
        given = {"sample": ((rows, config.in_channels, size[1] // factor, size[0] // factor), real)}
        given["timestep"] = ((rows,), real if parts.prediction_type == "flow" else whole)
        if text:
            given |= dict.fromkeys(("input_ids", "input_ids_2")[: len(self.pads)], ((rows, length), whole))
        else:
            given["text"] = ((rows, length, config.cross_attention_dim), real)
            if "pooled" in self.text_values:
                sizes = 6 * config.addition_time_embed_dim
                given["pooled"] = ((rows, config.projection_class_embeddings_input_dim - sizes), real)
        if "pooled" in self.text_values:
            given["time_ids"] = ((rows, 6), real)
        return given

    def denoise(self, parts: Parts, values: dict[str, Tensor]) -> Tensor:
        if "text" not in values:
            values = values | encode(parts.text_encoders, values)
        return self.call(parts.denoiser, values["sample"], values["timestep"], values)

    def layout(self, modules: Mapping[str, nn.Module]) -> list[ldm.Entry]:
        return ldm.layout(modules, self.name)

    def adapter_path(self, denoiser: nn.Module) -> Callable[[str], str]:
        paths = ldm.unet_paths(denoiser) if len(self.pads) > 1 else {}  # only SDXL's have their original names there
        return lambda path: ldm.renamed(path, paths)

    def pipeline(self, parts: Parts, **overrides: Any) -> diffusers.DiffusionPipeline:
        config = parts.scheduler_config
        if parts.prediction_type != "flow":
            config = config | {"prediction_type": parts.prediction_type}
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        modules = {"unet": parts.denoiser, "vae": parts.vae, "scheduler": scheduler}
        for i, suffix in enumerate(("", "_2")[: len(self.pads)]):  # None where they were not loaded
            modules[f"text_encoder{suffix}"] = parts.text_encoders[i] if parts.text_encoders else None
            modules[f"tokenizer{suffix}"] = parts.tokenizers[i] if parts.tokenizers else None
        if len(self.pads) == 1:
            modules |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        else:
            modules |= {"add_watermarker": False}
        return getattr(diffusers, self.pipeline_class)(**modules | overrides)


def build_encoder(config: Settings) -> nn.Module:
    """A text encoder with random weights, of the class that its configuration names."""
    projected = "CLIPTextModelWithProjection" in config.get("architectures", ())
    settings = {key: value for key, value in config.items() if key not in ("model_type", "_name_or_path")}
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**settings)).eval()


TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}
TINY_VAE = {"block_out_channels": [16, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64}
