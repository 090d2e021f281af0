"""One row a program: how its lines are known, which of its defaults we take over, and which differ and are only named.

A default is taken over where it decides which weights learn and on what; see the package's page for the rule. `TOLD` is
said in one line, with the flag that has the program's value, for what a line leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.settings.dialects import diffusers, kohya
from trainer.settings.dialects.meanings import Flags, Meaning, Noted, Refused


@dataclass(frozen=True)
class Told:
    """A default that differs from ours: the knob it is about, its words, the flag, and the value some other knob must have
    for it to matter (`only`: dotted key -> value of the line, None for "not given")."""

    key: str
    what: str
    flag: str
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """owner: "diffusers" or "kohya", whose flags it has; taken: dotted key -> (value, what that means in words); scheme: of
    the noise levels that a script for flow matching draws."""

    script: str
    owner: str
    taken: Mapping[str, tuple[Any, str]]
    told: tuple[Told, ...]
    scheme: str | None = None

    @property
    def line(self) -> Flags:
        """Meanings that hold only in a line for this program, before our own names."""
        if self.scheme is not None:
            return diffusers.flow_line(self.scheme)
        return {"diffusers": diffusers.LINE, "kohya": kohya.LINE}[self.owner]


_DIFFUSERS_TOLD = (
    Told("train.train_batch_size", "4 photos in a batch", "--train_batch_size 4"),
    Told("train.lr_warmup_steps", "500 steps of warm-up", "--lr_warmup_steps 500", {"train.lr_scheduler": "warms"}),
    Told("data.crop", "random crops", "--crop random"),
    Told("checkpoint.checkpointing_steps", "a checkpoint every 500 steps", "--checkpointing_steps 500"),
    Told("prior.num_class_images", "100 class images", "--num_class_images 100", {"prior.with_prior_preservation": "on"}),
    Told("train.max_train_steps", "one epoch", "--num_train_epochs 1", {"train.num_train_epochs": None}),
)  # fmt: skip
_KOHYA_TOLD = (
    Told("train.max_train_steps", "1600 steps", "--max_train_steps 1600", {"train.num_train_epochs": None}),
    Told("train.learning_rate", "a rate of 2e-6", "--learning_rate 2e-6"),
    Told("train.mixed_precision", "fp32 arithmetic", "--mixed_precision no"),
)
_NO_PRIOR = {"prior.with_prior_preservation": (False, "no prior preservation without --with_prior_preservation")}
_PROMPT_ONLY = {"data.captions": (False, "captions beside photos are not read (--captions reads them)")}
_LORA = {"train.method": ("lora", "an adapter (LoRA)"), "lora.rank": (4, "rank 4")}
_NETWORK = _LORA | {
    "lora.alpha": (1, "alpha 1"),
    "lora.init": ("kaiming", "its random start (--init kaiming)"),
    "lora.targets": (kohya.TRANSFORMERS, "every linear layer of the transformers, with their projections (--targets)"),
    "lora.text_targets": (kohya.TEXT, "attention and MLP of the text encoder (--text_targets)"),
    "train.train_text_encoder": (True, "the text encoder is trained, too (--no-train_text_encoder leaves it out)"),
}


def _diffusers(
    script: str, rate: str, pixels: int, taken: Mapping[str, tuple[Any, str]], scheme: str | None = None
) -> Program:
    told = (
        Told("train.learning_rate", f"a rate of {rate}", f"--learning_rate {rate}"),
        Told("data.resolution", f"{pixels} pixels", f"--resolution {pixels}"),
        *_DIFFUSERS_TOLD,
    )
    return Program(script, "diffusers", _NO_PRIOR | taken, told, scheme)


_SDXL_TEXT = {"train.text_encoder_lr": ("5e-6", "a rate of 5e-6 for the text encoders")}
PROGRAMS: dict[str, Program] = {
    program.script: program
    for program in (
        _diffusers("train_dreambooth.py", "5e-6", 512, _PROMPT_ONLY),
        _diffusers("train_dreambooth_lora.py", "5e-4", 512, _PROMPT_ONLY | _LORA),
        _diffusers("train_dreambooth_lora_sdxl.py", "1e-4", 1024, _PROMPT_ONLY | _LORA | _SDXL_TEXT),
        _diffusers("train_dreambooth_sd3.py", "1e-4", 512, _PROMPT_ONLY, "logit_normal"),
        _diffusers("train_dreambooth_lora_sd3.py", "1e-4", 512, _PROMPT_ONLY | _LORA, "logit_normal"),
        _diffusers("train_dreambooth_lora_lumina2.py", "1e-4", 512, _PROMPT_ONLY | _LORA, "none"),
        _diffusers("train_dreambooth_lora_flux2_klein.py", "1e-4", 512, _PROMPT_ONLY | _LORA, "none"),
        _diffusers("train_dreambooth_lora_z_image.py", "1e-4", 512, _PROMPT_ONLY | _LORA, "none"),
        _diffusers("train_dreambooth_lora_sd15_advanced.py", "1e-4", 512, _PROMPT_ONLY | _LORA | _SDXL_TEXT),
        _diffusers("train_dreambooth_lora_sdxl_advanced.py", "1e-4", 1024, _PROMPT_ONLY | _LORA | _SDXL_TEXT),
        Program(
            "train_db.py",
            "kohya",
            {
                "train.train_text_encoder": (
                    True,
                    "the text encoder is trained, too (--no-train_text_encoder leaves it out)",
                )
            },
            _KOHYA_TOLD,
        ),
        Program("fine_tune.py", "kohya", {}, _KOHYA_TOLD),
        Program("sdxl_train.py", "kohya", {}, _KOHYA_TOLD),
        Program("train_network.py", "kohya", _NETWORK, _KOHYA_TOLD),
        Program("sdxl_train_network.py", "kohya", _NETWORK, _KOHYA_TOLD),
    )
}

# What a line of OneTrainer's can say beside the file it names.
_PARTS = Noted("it is for the window that starts OneTrainer's training")
ONETRAINER: Flags = {
    "secrets_path": Noted("nothing is uploaded, and models of the hub are read with `hf auth login`"),
    "callback_path": _PARTS,
    "command_path": _PARTS,
    "preset_path": Refused(
        "one file of OneTrainer's is read", "export the whole configuration there, and name that file"
    ),
    "config_value": Refused(
        "single values of OneTrainer's files are not changed",
        "write it into the file, or give the flag that it sets here",
    ),
}

# Flags those programs accept although they do nothing there, so a line that has them still runs: a notice.
TOLERATED = frozenset(
    """
    class_data_dir class_prompt num_class_images prior_loss_weight sample_batch_size lr_warmup_steps lr_num_cycles
    lr_power validation_steps num_validation_images num_train_epochs adam_beta1 adam_beta2 adam_weight_decay
    adam_epsilon scale_lr logging_dir checkpoints_total_limit identifier class_name allow_tf32 text_encoder_lr
    text_encoder_2_lr text_encoder_stop_step text_targets cache_text conv_alpha crop
    """.split()
)


def meaning(name: str, program: Program | None = None) -> Meaning | None:
    """What a foreign flag means, in a line for `program` or in any."""
    if program is not None and name in program.line:
        return program.line[name]
    return diffusers.FLAGS.get(name) or kohya.FLAGS.get(name) or ONETRAINER.get(name)


def foreign_names() -> set[str]:
    """Every foreign flag that is understood beyond our own names for it."""
    return {*diffusers.FLAGS, *kohya.FLAGS, *kohya.LATER, *diffusers.LINE, *kohya.LINE, *ONETRAINER}


def guess(names: set[str]) -> Program | None:
    """The program a line was made for, told by its flags alone; None where it may be one of ours."""
    if "network_module" in names:
        return PROGRAMS["train_network.py"]
    if not names & {"pretrained_model_name_or_path", "dataset_config", "config_file"}:
        return None
    if names & (kohya.SCRIPT_FLAGS - diffusers.SCRIPT_FLAGS):
        xl = names & {
            "learning_rate_te1",
            "learning_rate_te2",
            "train_text_encoder",
            "cache_text_encoder_outputs",
            "block_lr",
        }
        return PROGRAMS["sdxl_train.py" if xl else "train_db.py"]
    if names & {"class_name", "identifier"} and "instance_prompt" not in names:
        return None  # the prompt is made of our own words; their scripts insist on one
    if names & {"rank", "use_dora", "lora_dropout", "output_kohya_format"}:
        return PROGRAMS[f"train_dreambooth_lora{'_sdxl' if names & SDXL_ONLY else ''}.py"]
    return PROGRAMS["train_dreambooth.py"]


SDXL_ONLY = {
    "pretrained_vae_model_name_or_path",
    "output_kohya_format",
    "use_dora",
    "dataset_name",
    "random_flip",
    "snr_gamma",
}
