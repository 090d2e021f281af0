"""A model family is a value: it knows how to build, read, encode, split and run one kind of diffusion model.

Everything the rest of the trainer asks of a model goes through `Parts` (the loaded modules) and `Family` (what can be
done with them), so the loop, the planner and the exporters never ask which family they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.models.vae import Latents, factor_of, latents_of, worked_on
from trainer.objective.noise import Noise
from trainer.settings.config import Model
from trainer.units import Unit


@dataclass(frozen=True)
class Defaults:
    """Learning settings of a family; the comment beside each value in the family's file says where it comes from."""

    lr_full: float  # full fine-tuning with prior preservation
    lr_full_no_prior: float  # without it
    lr_full_text: float  # with the text encoder trained too (both parts)
    lr_lora: float  # LoRA and DoRA, denoiser
    lr_lora_text: float  # LoRA and DoRA, text encoder
    lr_text: float | None = None  # text encoder in full fine-tuning, where it differs from lr_full_text
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # modules of the denoiser that adapters are put on
    steps: int = 800
    steps_lora: int = 800
    class_images: int = 200
    guidance: float | None = None  # of pictures, where the model wants another than Stable Diffusion
    prior_loss_weight: float = 1.0
    rank: int = 16

    def learning_rate(self, method: str, prior: bool, text: bool) -> float:
        """The denoiser's learning rate for `method` ("full", "lora", "dora")."""
        if method != "full":
            return self.lr_lora
        if text:
            return self.lr_full_text
        return self.lr_full if prior else self.lr_full_no_prior

    def text_learning_rate(self, method: str) -> float:
        return (self.lr_text or self.lr_full_text) if method == "full" else self.lr_lora_text

    def max_train_steps(self, method: str) -> int:
        return self.steps if method == "full" else self.steps_lora


@dataclass(frozen=True)
class Source:
    """Where a model is read from: a hub id, a folder, a file, or "demo"; and what its person says of it."""

    name: str
    family: str = "auto"
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None  # another VAE: folder, hub id or file
    prediction_type: str = "auto"

    @classmethod
    def of(cls, settings: Model) -> Source:
        """The settings' model, or the built-in one."""
        return cls(
            settings.name or "demo",
            settings.family,
            settings.revision,
            settings.variant,
            settings.vae,
            settings.prediction_type,
        )


@dataclass(frozen=True)
class Names:
    """What a family and its parts are called, here and by the programs that read exports.

    denoiser:      the first word of its units and parameters, in checkpoints too; the other parts are vae, text, text_2
    folders:       by part, its folder in a model of diffusers
    index:         what model_index.json says beside the parts
    adapters:      by part, what kohya's keys of its adapters begin with
    bases:         kohya's names of the base model; architectures: ModelSpec's. A pair: of models that predict noise, and of
                   those that predict velocities
    source:        the original code
    velocities, flows: whether readers who go by the family alone take its files for models that predict velocities, or
                   match flows
    marked:        whether ComfyUI looks for marks of another prediction or schedule in its files
    known:         whether readers know its sizes
    kohya:         whether diffusers reads its adapters in kohya's names
    """

    denoiser: str
    folders: Mapping[str, str]
    index: Mapping[str, Any]
    adapters: Mapping[str, str]
    bases: tuple[str, str]
    architectures: tuple[str, str]
    source: str
    velocities: bool = False
    flows: bool = False
    marked: bool = True
    known: bool = True
    kohya: bool = True

    @property
    def folder(self) -> str:
        """The denoiser's own, in a model of diffusers."""
        return self.folders[self.denoiser]

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders among the parts, in the order in which prompts go through them."""
        return tuple(part for part in self.folders if part not in (self.denoiser, "vae"))


@dataclass(frozen=True)
class Facts:
    """What is known of a model before it is loaded.

    family:  with the resolution that the model's own configuration names
    kind:    "demo", "hub", "folder", "file", or "public" for a family's shipped configurations
    path:    where its files are on this machine (for a hub model, the snapshot with the configurations)
    configs: configuration of each part by its folder in a model of diffusers, and the scheduler's
    prediction_from: what `prediction_type` was read from
    """

    family: Family
    kind: str
    path: Path
    prediction_type: str
    prediction_from: str
    configs: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def resolution(self) -> int:
        return self.family.resolution

    @property
    def denoiser(self) -> dict[str, Any]:
        """The denoiser's configuration."""
        return self.configs.get(self.family.names.folder, {})

    @property
    def divides(self) -> int:
        """What sides of pictures are multiples of, where the denoiser is to halve them as often as it does."""
        return factor_of(self.configs.get("vae", {})) * worked_on(self.denoiser)

    def asdict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": str(self.path),
            "resolution": self.resolution,
            "prediction_type": self.prediction_type,
            "prediction_from": self.prediction_from,
        }


@dataclass
class Parts:
    """One loaded model. Modules may be None (or the lists empty) where they were not loaded or are left out.

    `digest` names the weights: a hash of their bytes, or, for files above 64 MiB, of each file's size and first and
    last MiB (see `load.digest`).
    """

    family: Family
    origin: Source
    digest: str
    denoiser: nn.Module | None = None  # what learns to draw: a UNet, or a transformer
    vae: nn.Module | None = None  # AutoencoderKL, or another that says itself what its latents are (models/vae.py)
    text_encoders: list[nn.Module] = field(default_factory=list)  # one to three
    tokenizers: list[Any] = field(default_factory=list)  # as many
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    prediction_type: str = "epsilon"  # or "v_prediction", "flow"
    spare: list[nn.Module] = field(default_factory=list)  # layers that clip_skip took off the text encoder
    windows: int = 1  # of 77 tokens, in which prompts are read

    def modules(self) -> dict[str, nn.Module]:
        """The modules that are loaded, by the name that parameters and units carry: the denoiser's, vae, text, text_2."""
        names = self.family.names
        named = {names.denoiser: self.denoiser, "vae": self.vae}
        named |= dict(zip(names.encoders, self.text_encoders, strict=False))
        return {name: module for name, module in named.items() if module is not None}

    def buffers(self) -> dict[str, Tensor]:
        """What belongs to a model's file beside its parameters, by full name: tables of positions, a VAE's running means."""
        return {
            f"{part}.{name}": buffer
            for part, module in self.modules().items()
            for name, buffer in persistent(module).items()
        }

    @property
    def source(self) -> str:
        return self.origin.name

    def noise(self, zero_terminal_snr: bool = False, size: tuple[int, int] | None = None) -> Noise:
        """What noises this model's latents of pictures of `size` (width, height), the family's own where nobody says;
        `zero_terminal_snr` rescales its schedule."""
        size = size or (self.family.resolution, self.family.resolution)
        return self.family.noise(self.scheduler_config, self.prediction_type, zero_terminal_snr, size)

    @property
    def latents(self) -> Latents:
        """What its VAE makes of pictures."""
        return latents_of(loaded(self.vae))

    @property
    def divides(self) -> int:
        """What sides of pictures are multiples of, as `Facts.divides` has it."""
        return self.latents.factor * worked_on({} if self.denoiser is None else dict(_config(self.denoiser)))

    @property
    def side(self) -> int | None:
        """Pixels along the side of a picture that the denoiser's own configuration names, where it names one."""
        latent = getattr(_config(self.denoiser), "sample_size", None)
        return latent * self.latents.factor if latent else None


def persistent(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that its files hold."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in parameters}


def loaded(module: nn.Module | None) -> nn.Module:
    """A part of a model, for who needs it and has seen to it that it was loaded."""
    assert module is not None, "this part of the model was not loaded"
    return module


def _config(module: nn.Module | None) -> Any:
    """What diffusers keeps of a part's configuration."""
    return loaded(module).config


class Family(Protocol):
    """What can be done with one kind of model. `values` are named tensors, as units read and write them."""

    name: str
    title: str  # for the person at the keyboard
    words: tuple[str, ...]  # what names of such models usually contain
    resolution: int
    defaults: Defaults
    pipeline_class: str  # of diffusers
    export_gb: float  # all weights of the public model in fp16
    names: Names
    text_values: tuple[str, ...]  # what prompts become, as units read it
    empty_is_zeros: bool  # whether pictures are drawn with zeros where nothing is said
    trains_text: bool  # whether its text encoders may be trained
    classes: Mapping[str, Any]  # by folder in a model of diffusers, whose `from_pretrained` reads it

    def tiny(self, seed: int = 0) -> Parts:
        """Small, randomly initialised, real diffusers and transformers modules with every block type (fp32, CPU)."""

    def meta(self) -> Parts:
        """The full-size public model on the meta device: shapes without memory."""

    def public(self) -> Facts:
        """Facts of the public model, from the configurations that are shipped: nothing is downloaded."""

    def build_meta(self, facts: Facts) -> Parts:
        """The model of `facts` on the meta device, built from its own configurations."""

    def build(self, folder: str, config: dict[str, Any]) -> nn.Module:
        """One part with random weights, as its configuration has it, in eval mode."""

    def read_tokenizers(self, path: Path) -> list[Any]:
        """The tokenizers that lie with the model at `path`, or the shipped ones where it brings none."""

    def spelled(self, key: str, words: Container[str]) -> str:
        """A key of `layout` as the file whose keys are `words` spells it; the key itself where the file has neither."""

    def units(self, parts: Parts, text: bool = False) -> list[Unit]:
        """The denoiser, preceded by the text encoders when `text`, as an ordered list of units.

        Parameter names inside a unit's module are the full ones ("unet.down_blocks.0...."). Inject adapters first.
        """

    def text_units(self, parts: Parts) -> list[Unit]:
        """The text encoders alone, as units: from what `tokens` gives to the values that `encode_text` gives."""

    def encode_text(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        """`text_values` by name, such as {"text": (B, L, C), "pooled": (B, P)} or {"text": ..., "mask": (B, L)}, without
        gradients, through the encoders' own forward pass: the reference that their units must equal bit for bit."""

    def tokens(self, parts: Parts, prompts: list[str]) -> dict[str, Tensor]:
        """{"input_ids": (B, L)}, with as many more as there are tokenizers, and masks where there are some; what text units
        read."""

    def noise(
        self, schedule: Mapping[str, Any], prediction: str, zero_terminal_snr: bool, size: tuple[int, int]
    ) -> Noise:
        """What noises latents of pictures of `size` (width, height), given the scheduler's configuration."""

    def extra_values(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int], batch: int
    ) -> dict[str, Tensor]:
        """Size conditioning of SDXL, {"time_ids": (B, 6)} from (height, width) pairs; {} for the others."""

    def call(self, denoiser: Any, sample: Tensor, timestep: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's answer, through diffusers' own forward pass: the reference that units must equal bit for bit.
        `values`: what units read beside sample and timestep."""

    def values_of(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The inverse: what a pipeline of diffusers calls the denoiser with, as named values."""

    def answer(self, prediction: Tensor) -> Any:
        """What such a pipeline expects of the denoiser, given the units' prediction."""

    def inputs(
        self, parts: Parts, rows: int, size: tuple[int, int], text: bool
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every value that a step is given for `rows` pictures of `size` (width, height): sample,
        timestep, embeddings (or, with `text`, token ids), and what extra_values brings."""

    def denoise(self, parts: Parts, values: dict[str, Tensor]) -> Tensor:
        """`call` with the parts' own denoiser on named values, token ids encoded first where there is no text."""

    def layout(self, modules: Mapping[str, nn.Module]) -> Sequence[Any]:
        """How the parameters of `modules`, by part, lie in one original checkpoint: `ldm.Entry`s."""

    def adapter_path(self, denoiser: nn.Module) -> Callable[[str], str]:
        """From a module's path in the denoiser to the one that kohya's keys of adapters have."""

    def pipeline(self, parts: Parts, **overrides: Any) -> Any:
        """A diffusers pipeline over the same modules."""
