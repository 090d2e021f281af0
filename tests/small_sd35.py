"""Parts of Stable Diffusion 3.5 in small, with weights that hide nothing, and units run one after the other."""

import json
from importlib import resources

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, T5Config

from trainer import units as schedule
from trainer.models.dit import sd35_text, sd35_units

SMALL = {
    "num_layers": 4,
    "dual_attention_layers": [0, 1],
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 72,
    "pos_embed_max_size": 12,
    "sample_size": 8,
}


CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}
WIDE = {"hidden_size": 48, "projection_dim": 40}
T5 = {"d_ff": 64, "d_kv": 8, "d_model": 96, "num_heads": 4, "num_layers": 3, "vocab_size": 110}


def config(part: str) -> dict:
    """The public configuration of a part, as its class takes it."""
    public = resources.files("trainer").joinpath(f"assets/models/sd35/{part}/config.json").read_text()
    left_out = ("architectures", "model_type", "_class_name")
    return {name: value for name, value in json.loads(public).items() if name not in left_out}


def denoiser(**changes) -> nn.Module:
    torch.manual_seed(0)
    made = sd35_units.CLASS(**config("transformer") | SMALL | changes).eval()
    for parameter in made.parameters():  # gates and the last layer begin at zero, which would hide what is behind them
        nn.init.normal_(parameter, std=0.2)
    return made


def inputs(size: tuple[int, int] = (8, 8), t5: bool = True, rows: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = (rows, 77 + 256, 96) if t5 else (rows, 77, 80)
    return {
        "sample": torch.randn(rows, 16, *size, generator=generator),
        "timestep": torch.tensor([3.5, 870.0, 1000.0][:rows]),
        "text": torch.randn(text, generator=generator),
        "pooled": torch.randn(rows, 72, generator=generator),
    }


def run(units: list[schedule.Unit], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All values, those that are given and those that units write."""
    values = dict(given)
    for unit in units:
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    return values


def encoders(t5: bool = True) -> list[nn.Module]:
    torch.manual_seed(0)
    kinds = sd35_text.ENCODERS
    made = [kinds["text_encoder"](CLIPTextConfig(**config("text_encoder") | CLIP))]
    made.append(kinds["text_encoder_2"](CLIPTextConfig(**config("text_encoder_2") | CLIP | WIDE)))
    if t5:
        made.append(kinds["text_encoder_3"](T5Config(**config("text_encoder_3") | T5)))
    return [encoder.eval() for encoder in made]
