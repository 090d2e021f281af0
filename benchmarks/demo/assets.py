"""Assets: the trained parts as a Stable Diffusion folder that diffusers loads by itself, in half precision.

`model_index.json` names the parts; the embedding that trained only in part becomes an ordinary table again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from . import text, unet

PARTS = {
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def plain_encoder(trained: torch.nn.Module):
    """An ordinary CLIPTextModel with the partly trained embedding merged."""
    from transformers import CLIPTextConfig, CLIPTextModel

    plain = CLIPTextModel(CLIPTextConfig(**text.CONFIG))
    state = {}
    for key, value in trained.state_dict().items():
        if "token_embedding." not in key:
            state[key] = value
    table = unet.token_embedding_owner(trained).token_embedding.merged()
    name = next(key for key in plain.state_dict() if key.endswith("token_embedding.weight"))
    plain.load_state_dict(state | {name: table})
    return plain.eval()


def write_model(average: torch.nn.ModuleDict, vae_folder: Path, tokenizer: Path, folder: Path) -> None:
    """`average` is the exponential average of {"unet", "text"}; everything else is copied beside it."""
    import diffusers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    plain_unet = UNet2DConditionModel(**unet.CONFIG)
    plain_unet.load_state_dict(average["unet"].state_dict())
    plain_unet.half().save_pretrained(folder / "unet")
    plain_encoder(average["text"]).half().save_pretrained(folder / "text_encoder")
    AutoencoderKL.from_pretrained(vae_folder).half().save_pretrained(folder / "vae")
    for config in folder.glob("*/config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)  # where diffusers read a model from: nobody else has that folder
        if values.pop("dtype", None):  # transformers obeys it where diffusers loads float32: "Half and Float"
            values["torch_dtype"] = "float32"
        config.write_text(json.dumps(values, indent=2) + "\n")
    (folder / "scheduler").mkdir(
        exist_ok=True
    )  # by hand, as SD 1.5 has it: clip_sample is for the schedulers swapped in later
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": diffusers.__version__,
        **unet.SCHEDULER,
        "skip_prk_steps": True,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        **PARTS,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read


def average_from(state: Path, captions: unet.Captions) -> torch.nn.ModuleDict:
    """The averaged weights of a checkpoint, while training goes on elsewhere."""
    parts = torch.nn.ModuleDict(dict(zip(("unet", "text"), unet.build(captions, "cpu"), strict=True)))
    parts.load_state_dict(torch.load(state, map_location="cpu")["average"])
    return parts.eval()


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_judge(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("judge.json", "judge.safetensors"):
        shutil.copyfile(source / name, folder / name)


def write_sheet(sheet, path: Path, limit_bytes: int = 300_000) -> None:
    """A PNG below the limit, by fewer colours where it must."""
    for colours in (None, 256, 128, 64):
        (sheet if colours is None else sheet.quantize(colours)).save(path, optimize=True)
        if path.stat().st_size <= limit_bytes:
            return
