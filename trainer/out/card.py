"""What an exported file says about itself, in the keys that people's programs show.

    modelspec.*   Stability AI's ModelSpec: ComfyUI, SwarmUI and the WebUIs show title, trigger words and resolution
    ss_*          kohya's keys, in files of adapters: the WebUIs read the base model and the rank there, CivitAI the tags
    trainer.*     our own: every training setting that decided what was learned, and a name for the base model's weights

A file is passed on, so nothing in it names a folder of the machine that made it. A model that predicts velocities, or
whose noise schedule ends at zero signal, is marked in every form that readers know: `v_pred` and `ztsnr` tensors in a
checkpoint, the scheduler's configuration in a folder. Unmarked, it would be drawn from as if it predicted noise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.models import adapters
from trainer.models.base import Parts

NOT_SHOWN = ("title", "captions", "folder")  # settings that travel in other keys than trainer.*


def card(
    parts: Parts, precision: str, settings: Mapping[str, str], *, lora: bool = False, original: bool = True
) -> dict[str, str]:
    """Metadata of one file. `settings`: training settings as text by dotted key, with "title", "folder" (the photo folder's
    name) and "captions" (JSON, caption -> how many photos) where they are known."""
    family, velocity = parts.family, is_velocity(parts)
    side = settings.get("data.resolution") or str(family.resolution)
    found = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.names.architectures[velocity] + ("/lora" if lora else ""),
        "modelspec.implementation": family.names.source if original else "diffusers",
        "modelspec.title": settings.get("title") or "DreamBooth model",
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{side}x{side}",
        "trainer.precision": precision,
        "trainer.base_model": public(parts.source),
        "trainer.base_digest": parts.digest,
        **{f"trainer.{key}": str(value) for key, value in settings.items() if key not in NOT_SHOWN},
    }
    if not is_flow(parts):  # which the specification has no word for
        found["modelspec.prediction_type"] = "v" if velocity else "epsilon"
    if trigger := trigger_phrase(settings):
        found["modelspec.trigger_phrase"] = trigger
        found["modelspec.usage_hint"] = f"say {trigger!r} in the prompt"
    if tags := frequencies(settings):
        found["modelspec.tags"] = ", ".join(tag for tag, _ in Counter(tags).most_common(20))
    if "trainer.model.name" in found:
        found["trainer.model.name"] = public(found["trainer.model.name"])
    return found


def network(parts: Parts, settings: Mapping[str, str]) -> dict[str, str]:
    """kohya's keys about an adapter."""
    version = parts.family.names.bases[is_velocity(parts)]
    rank, scale = next(iter(adapters.scales(parts).values()))
    side = settings.get("data.resolution") or str(parts.family.resolution)
    told = {
        "ss_learning_rate": "train.learning_rate",
        "ss_unet_lr": "train.learning_rate",
        "ss_text_encoder_lr": "train.text_encoder_lr",
        "ss_max_train_steps": "train.max_train_steps",
        "ss_steps": "train.max_train_steps",
        "ss_batch_size_per_device": "train.train_batch_size",
        "ss_gradient_accumulation_steps": "train.gradient_accumulation_steps",
        "ss_lr_scheduler": "train.lr_scheduler",
        "ss_optimizer": "train.optimizer",
        "ss_seed": "train.seed",
        "ss_noise_offset": "train.offset_noise",
        "ss_min_snr_gamma": "train.snr_gamma",
        "ss_prior_loss_weight": "prior.prior_loss_weight",
        "ss_mixed_precision": "train.mixed_precision",
        "ss_clip_skip": "model.clip_skip",
        "ss_max_token_length": "model.max_token_length",
    }
    found = {key: settings[source] for key, source in told.items() if settings.get(source) not in (None, "None")}
    found |= {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{rank * scale:g}",
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_sd_model_name": public(settings.get("model.name") or parts.source),
        "ss_zero_terminal_snr": str(is_rescaled(parts, settings)),
        "ss_resolution": f"({side}, {side})",
        "ss_output_name": settings.get("title") or "DreamBooth model",
    }
    captions = json.loads(settings.get("captions") or "{}")
    if captions:
        folder = settings.get("folder") or "photos"
        found |= {
            "ss_num_train_images": str(sum(captions.values())),
            "ss_tag_frequency": json.dumps({folder: frequencies(settings)}, ensure_ascii=False),
            "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": sum(captions.values())}}),
        }
    return found


def frequencies(settings: Mapping[str, str]) -> dict[str, int]:
    """How many photos carry each tag; a caption without commas is one tag. Most frequent first."""
    counts: Counter[str] = Counter()
    for caption, photos in json.loads(settings.get("captions") or "{}").items():
        for tag in dict.fromkeys(part.strip() for part in caption.split(",")):
            if tag:
                counts[tag] += photos
    return dict(counts.most_common())


def trigger_phrase(settings: Mapping[str, str]) -> str:
    """The words that name the subject: identifier and class where the prompt has them, else the prompt itself."""
    prompt, identifier = (_told(settings, key) for key in ("data.instance_prompt", "data.identifier"))
    if identifier and identifier in prompt.split():
        words = f"{identifier} {_told(settings, 'data.class_name')}".strip()
        return words if words in prompt else identifier
    return prompt


def _told(settings: Mapping[str, str], key: str) -> str:
    value = settings.get(key) or ""
    return "" if value == "None" else value


def public(source: str) -> str:
    """A model's name as others may read it: a hub id as it is, of a path the last part alone."""
    path = Path(source).expanduser()
    local = path.is_absolute() or path.exists() or len(path.parts) != 2 or "\\" in source
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] if local else source


# ---- marks


def is_velocity(parts: Parts) -> bool:
    return parts.prediction_type == "v_prediction"


def is_flow(parts: Parts) -> bool:
    return parts.prediction_type == "flow"


def is_rescaled(parts: Parts, settings: Mapping[str, str]) -> bool:
    """Whether the schedule that was trained on ends at zero signal: the model's own, or asked for."""
    asked = settings.get("train.zero_terminal_snr") == "True"
    return asked or bool(parts.scheduler_config.get("rescale_betas_zero_snr"))


def scheduler(parts: Parts, settings: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler's configuration of an export. Only some of diffusers' schedulers know a rescaled schedule, whose first
    step must be the last timestep ("trailing", arXiv 2305.08891); the others would drop both marks without a word."""
    if is_flow(parts):
        return dict(parts.scheduler_config)
    config = parts.scheduler_config | {"prediction_type": parts.prediction_type}
    if not is_rescaled(parts, settings):
        return config
    if config["_class_name"] not in ("DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        config = {key: value for key, value in config.items() if key != "skip_prk_steps"}
        config |= {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    return config | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def marks(parts: Parts, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the empty tensors by which ComfyUI and the WebUIs know such a checkpoint. SD 2 is told by its weights, but a
    mark does no harm there."""
    found = ("v_pred",) if is_velocity(parts) else ()
    return (*found, "ztsnr") if is_rescaled(parts, settings) else found


def unlike_the_rest(parts: Parts, settings: Mapping[str, str]) -> bool:
    """Whether a reader that goes by the family alone would draw wrongly: diffusers takes every SD 2 file for one that
    predicts velocities, and every other file for one that predicts noise on the usual schedule."""
    names = parts.family.names
    kind = is_flow(parts) != names.flows or is_velocity(parts) != names.velocities
    return kind or is_rescaled(parts, settings)
