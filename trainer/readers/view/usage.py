"""How to draw with an export, ready to paste: diffusers code, or where WebUI and ComfyUI look for the file."""

from __future__ import annotations

from pathlib import Path

from trainer.events import Exported


def usage(export: Exported, model: str, prompt: str) -> str:
    """Lines for `export` of a run that began from `model`; the exporter's own words for a format not known here."""
    name = Path(export.path).name
    dtype = {"fp32": "float32", "bf16": "bfloat16"}.get(export.precision, "float16")

    def code(source: str, *then: str) -> str:
        load = f'pipe = DiffusionPipeline.from_pretrained({source!r}, torch_dtype=torch.{dtype}).to("cuda")'
        draw = f"pipe({prompt!r}).images[0].save('picture.png')"
        return "\n".join(("import torch", "from diffusers import DiffusionPipeline", "", load, *then, draw))

    match export.format:
        case "diffusers":
            return code(export.path)
        case "lora diffusers":
            return code(model, f"pipe.load_lora_weights({export.path!r})")
        case "single file":
            return (
                f"WebUI (AUTOMATIC1111, Forge): copy {name} to models/Stable-diffusion, choose it at the top left.\n"
                f"ComfyUI: copy {name} to models/checkpoints, choose it in Load Checkpoint.\n"
                f"Prompt: {prompt}"
            )
        case "lora kohya":
            return (
                f"WebUI (AUTOMATIC1111, Forge): copy {name} to models/Lora, prompt with <lora:{Path(name).stem}:1>.\n"
                f"ComfyUI: copy {name} to models/loras, add a Load LoRA node.\n"
                f"Prompt: {prompt}"
            )
    return export.usage
