"""Every knob once: name, type, default, help, and the names other trainers know it by.

A knob is one line in a section; its TOML key, its flag and its attribute are the same word (`memory.checkpointing`).
`None` and "auto" mean that the model family, the photos or the planner decide; the decision is printed with its origin.
Nothing here imports torch, so `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr

from trainer.settings.knob import Section, knob
from trainer.settings.learning import Lora, Prior, Train

if TYPE_CHECKING:
    Families = str
else:  # a family is named here by the folder of its configurations
    _CONFIGURED = [path for path in (Path(__file__).parent.parent / "assets" / "models").iterdir() if path.is_dir()]
    _CONFIGURED.sort(key=lambda folder: ((folder / "transformer").is_dir(), folder.name))
    Families = Literal[("auto", *(folder.name for folder in _CONFIGURED))]


class Model(Section):
    """The model that learns"""

    name: str | None = knob(
        None,
        "hub id, diffusers folder, .safetensors file, or 'demo' (built in)",
        "pretrained_model_name_or_path",
        "pretrained_model_name",
        "model",
    )
    family: Families = knob("auto", "model family; auto reads it from the model")
    prediction_type: Literal["auto", "epsilon", "v_prediction", "flow"] = knob(
        "auto", "what the denoiser predicts; auto reads the scheduler's configuration"
    )
    revision: str | None = knob(None, "hub revision (branch, tag or commit)", "revision")
    variant: str | None = knob(None, "hub weight variant, such as fp16", "variant")
    vae: str | None = knob(
        None, "another VAE (hub id, folder or .safetensors)", "pretrained_vae_model_name_or_path", "vae"
    )
    clip_skip: int = knob(1, "SD 1.x: read the text encoder's last layer but so many less one; 2 is usual", ge=1, le=11)
    max_token_length: int = knob(
        75, "tokens read of a prompt: 75, 150, 225; joined as in ComfyUI, not kohya", ge=75, le=225, multiple_of=75
    )


class Data(Section):
    """Photos of the subject"""

    instance_data_dir: str | None = knob(
        None, "folder with 3 to 6 photos of the subject", "train_data_dir", "instance_images", "photos"
    )
    folders: Literal["auto", "loose", "numbered", "all"] = knob(
        "auto", "which photos count: those in the folder itself, in kohya's numbered folders, or in all its folders"
    )
    identifier: str = knob("hta", "rare word that will name the subject", "token")
    class_name: str | None = knob(None, "what the subject is: dog, backpack, person ...")
    instance_prompt: str | None = knob(None, "prompt of the photos; default 'a photo of {identifier} {class_name}'")
    subsets: list[str] = knob(
        [],
        "several folders with repeats and prompts, instead of one: 'REPEATS x FOLDER' or 'REPEATS x FOLDER = PROMPT'",
    )
    captions: bool = knob(
        True, "read name.txt, name.caption, metadata.jsonl or .csv beside photos as their own prompts"
    )
    allow_prompts: bool = knob(False, "accept prompts that defeat prior preservation")
    resolution: int | None = knob(
        None, "pixels of the square (or of the bucket area's root); default the model's own", ge=16, le=4096
    )
    crop: Literal["center", "random"] = knob("center", "where the square is cut from; random caches several crops")
    crop_variants: int = knob(4, "random crops cached for each photo", ge=1, le=64)
    random_flip: bool = knob(False, "mirror photos half of the time (both variants are cached)", "flip_aug")
    buckets: bool = knob(False, "aspect-ratio buckets instead of squares", "enable_bucket")
    crop_jitter: float = knob(0.0, "share of the side by which crops are moved and scaled at random", ge=0, le=0.5)
    color_jitter: float = knob(0.0, "strength of brightness, contrast and saturation changes", ge=0, le=1)
    masked_loss: bool = knob(False, "weigh the loss by the photo's alpha channel or by name.mask.png", "alpha_mask")


class Memory(Section):
    """Where bytes live; auto leaves the choice to the planner, which takes the fastest plan that fits"""

    vram_gb: float | None = knob(
        None, "budget in GiB for the whole process; presets set it, auto = what the card has free", gt=0
    )
    weights: Literal["auto", "fp32", "24bit", "16bit_sr"] = knob(
        "auto", "master weights: fp32; 16 bits plus 8 correction bits; or 16 bits with stochastic rounding"
    )
    moments: Literal["auto", "fp32", "8bit", "4bit"] = knob("auto", "precision of Adam's moments")
    checkpointing: Literal["auto", "off", "selective", "blocks"] = knob(
        "auto",
        "recompute activations in backward: nothing, all but matmul and attention outputs, or everything inside a unit",
    )
    boundaries: Literal["auto", "card", "ram"] = knob("auto", "where the values between units wait for backward")
    stream: Literal["auto", "off", "state", "all"] = knob(
        "auto", "keep optimizer state, or weights too, in host RAM and bring each unit's share when it runs"
    )
    resident_units: int | None = knob(None, "with streaming, units that stay on the card; default as many as fit", ge=0)
    shard: Literal["auto", "off", "state"] = knob("auto", "of several cards each has a slice of the optimizer state")
    gradients: Literal["auto", "card", "ram"] = knob(
        "auto", "where gradients wait when exact clipping or accumulation needs them all"
    )
    early_updates: bool | None = knob(
        None,
        "with streaming, do not wait for the norm; a step that is clipped is made again; default where that is faster",
    )
    reach_mb: int | None = knob(
        None, "with early updates, MiB that may be on their way at a step's end; default what is fastest and fits", ge=0
    )
    attention: Literal["auto", "sdpa", "xformers", "math"] = knob("auto", "attention backend")
    recompute_kernels: Literal["auto", "on", "off"] = knob(
        "auto", "norms, activations and gates whose backward recomputes from the input"
    )
    channels_last: Literal["auto", "on", "off"] = knob("auto", "memory layout of convolutions")
    compile: Literal["off", "blocks"] = knob("off", "torch.compile the repeated blocks")
    cuda_graphs: bool | None = knob(None, "whole steps as CUDA graphs; default where the card waits for Python")
    vae_tile: int | None = knob(None, "pixels of a VAE tile; default what the budget holds", ge=64)
    cache_latents: bool = knob(
        True, "keep encoded photos on disk; off: encode them again in every run", "cache_latents_to_disk"
    )
    cache_text: bool = knob(
        True,
        "keep encoded prompts on disk; off: encode them again in every run",
        "pre_compute_text_embeddings",
        "cache_text_encoder_outputs",
        "cache_text_encoder_outputs_to_disk",
    )


class Checkpoint(Section):
    """Saving and resuming"""

    checkpointing_steps: int | None = knob(
        None, "save every so many steps; default only at the end", "save_every_n_steps", ge=1
    )
    checkpoints_total_limit: int | None = knob(None, "keep at most so many", ge=1)
    resume_from_checkpoint: str | None = knob(None, "a checkpoint folder, or 'latest'", "resume")


class Sample(Section):
    """Pictures during training"""

    validation_prompt: list[str] = knob(
        [], "prompts drawn with fixed seeds; default the photos' own, four at most", "prompt", "validation_prompts"
    )
    num_validation_images: int = knob(4, "pictures for each prompt", ge=0)
    validation_steps: int | None = knob(
        None, "draw every so many steps; default only at the end", "sample_every_n_steps", ge=1
    )
    steps: int = knob(30, "denoising steps", ge=1)
    guidance_scale: float = knob(7.5, "classifier-free guidance", ge=1)
    negative_prompt: str = knob("", "what to steer away from")
    batch_size: int | None = knob(None, "pictures drawn at once; default what the budget holds", ge=1)
    strengths: list[float] = knob([], "`sample RUN`: draw at each of these shares of what was learned, on one sheet")


class Export(Section):
    """What is left when the run is over"""

    formats: list[Literal["diffusers", "single_file", "lora_diffusers", "lora_kohya"]] | None = knob(
        None, "default: diffusers and single_file, or both LoRA formats"
    )
    output_name: str | None = knob(
        None,
        "name of the one file that ComfyUI and the WebUIs take, in the run folder; default by its format, in model/",
        pattern=r"^[^/\\]*[^/\\.][^/\\]*$",
    )
    precision: Literal["fp16", "fp32", "bf16"] = knob(
        "fp16", "bf16 throws away 10 to 40 % of what was learned", "save_precision"
    )
    strength: float = knob(1.0, "share of what was learned that is exported: 0 none of it, 1 all", ge=0, le=2)


class Guard(Section):
    """Overfitting and drift"""

    watch: bool = knob(True, "take readings of overfitting and drift while training (within 5 % of its time)")
    interval: int | None = knob(None, "steps between readings; default so that they cost under 5 % of the time", ge=1)
    judge: str = knob(
        "auto", "demo, clip:<model>, dino:<model>, efficientnet-lite0, none; auto = demo for the demo model, else none"
    )
    early_stop: Literal["off", "plateau", "drift"] = knob("off", "stop on this verdict; off only reports it")
    patience: int = knob(3, "readings without improvement that make a plateau", ge=1)
    drift_limit: float = knob(0.35, "drift above this is a verdict", gt=0)
    keep_best: bool = knob(
        False,
        "keep the best checkpoint beside the last: subject + prompt - drift of the class and of unrelated prompts, where a judge looks; else the held-out loss",
    )


class Run(Section):
    """The run"""

    output_dir: str | None = knob(None, "run folder; default runs/<date>-<subject>")
    device: Literal["auto", "cuda", "cpu"] = knob("auto", "where to train")
    cards: int = knob(1, "cards (or CPU processes) that train together; starts a process for each", ge=1)
    report_to: list[Literal["tensorboard", "wandb"]] = knob([], "trackers beside log.jsonl", "log_with")
    logging_dir: str | None = knob(None, "where trackers write; default <run>/trackers")
    dashboard: Literal["auto", "on", "off"] = knob("auto", "full-screen view; auto where the output is a terminal")
    overwrite: bool = knob(False, "accept a non-empty output folder; an earlier run moves to earlier-1 there, whole")
    layout: Literal["own", "diffusers"] = knob(
        "own", "names in the run folder; a line of diffusers' scripts finds its pipeline and its checkpoint-N there"
    )
    cache_dir: str | None = knob(None, "latents and embeddings; default <output_dir>/../cache")
    card: str | None = knob(None, "plan: card whose speed is estimated, such as 'RTX 3060'")
    link: Literal["auto", "pcie", "pcie_x8", "nvlink", "server"] = knob("auto", "plan: what joins the cards")
    probe: bool = knob(False, "CUDA: run one step, one sample and one save first, and correct the plan")


class Config(Section):
    """All settings of a run; `preset` names the file that was laid under them.

    Built by `settings.overlay.load`, which also fills `provenance`: "train.learning_rate" -> "default" | "preset 12gb" |
    "file mine.toml" | "flag --lr". Whoever decides a value later writes it with `settle`, so its origin is known too.
    """

    preset: str | None = knob(None, "4gb, 6gb, 8gb, 12gb, 16gb, 24gb, auto, or a TOML file")
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    prior: Prior = Field(default_factory=Prior)
    train: Train = Field(default_factory=Train)
    lora: Lora = Field(default_factory=Lora)
    memory: Memory = Field(default_factory=Memory)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    sample: Sample = Field(default_factory=Sample)
    export: Export = Field(default_factory=Export)
    guard: Guard = Field(default_factory=Guard)
    run: Run = Field(default_factory=Run)
    _provenance: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def provenance(self) -> dict[str, str]:
        return self._provenance

    def value(self, key: str) -> Any:
        """The value of a dotted key, such as "memory.weights"."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)

    def settle(self, key: str, value: Any, origin: str) -> None:
        """Replace an open value (None, "auto") by what was decided, and remember who decided it."""
        section, _, name = key.rpartition(".")
        setattr(getattr(self, section) if section else self, name, value)
        self._provenance[key] = origin

    def chosen(self, key: str) -> bool:
        """True where a person set this value: in a file, by a flag, or by giving another program's line ("line of train_db.py")."""
        return self._provenance.get(key, "default").startswith(("file", "flag", "line"))


def knobs() -> dict[str, Any]:
    """Every knob by its dotted key, in the order of the schema: {"memory.weights": FieldInfo, ...}."""
    found: dict[str, Any] = {"preset": Config.model_fields["preset"]}
    for section, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= {f"{section}.{name}": info for name, info in field.annotation.model_fields.items()}
    return found
