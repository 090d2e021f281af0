"""Two steps of training of a tiny transformer and its exports, for tests that draw from what was written."""

import torch

from trainer.events import Exported
from trainer.models import adapters
from trainer.out import export
from trainer.policy import Policy
from trainer.settings.config import Lora
from trainer.step.engine import Engine

FULL, LORA = ("diffusers", "single_file"), ("lora_diffusers", "lora_kohya")
LOOK = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64, "output_type": "pt"}
CLOSE = 2 / 255  # folding an adapter in fp32 rounds differently from adding it


def drawn(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt="a photo of sks dog", generator=torch.Generator().manual_seed(0), **LOOK).images[0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def trained(parts, method: str, folder):
    """(picture of the trained modules, picture before training, exports by format)."""
    family = parts.family
    before = drawn(family.pipeline(parts))
    if method != "full":
        settings = Lora(rank=4, alpha=8, targets=[*family.defaults.targets])
        adapters.inject(parts, settings, dora=method == "dora")
    engine = Engine(family.units(parts), Policy(), "cpu")
    generator = torch.Generator().manual_seed(1)
    shape = family.inputs(parts, 1, (LOOK["width"], LOOK["height"]), False)["sample"][0]
    sample, target = (torch.randn(shape, generator=generator) for _ in range(2))
    given = {"sample": sample, "timestep": torch.tensor([500.0])} | family.encode_text(parts, ["a photo of sks dog"])
    for _ in range(2):  # an adapter's first matrix learns from the second step on
        engine.step([given], lambda prediction, _: (prediction.float() - target).square().mean(), 3e-2)
    adapters.dropout(parts, False)
    picture, formats = drawn(family.pipeline(parts)), FULL if method == "full" else (*LORA, *FULL)
    made = [e for e in export.write(parts, engine.master, folder, formats, "fp32") if isinstance(e, Exported)]
    return picture, before, dict(zip(formats, made, strict=True))
