"""Training the judge: one picture tower, three questions.

    loss = CE(class) + CE(context) + CE(colour) + InfoNCE(two scenes of one design) + InfoNCE(scene, caption)

Two scenes of the same drawing in different places must be closer than scenes of other drawings, of the same class above
all: that makes the features a measure of identity and not of class. It is scored on drawings it never saw.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.guard import judge as judges

from . import backgrounds, scenes, vae
from .pace import Pace, set_lr

WIDTHS, SUBJECT_DIM, MATCH_DIM = [32, 64, 96, 128], 64, 64


def card(classes: tuple[str, ...]) -> dict:
    rng, words = np.random.default_rng(0), set()
    for class_index in range(len(classes)):
        for context in range(len(backgrounds.CONTEXTS)):
            for colour in (scenes.NO_COLOUR, context % scenes.NO_COLOUR):
                shows = np.array([class_index, 0, context, colour])
                words |= {w for _ in range(4) for w in scenes.caption(rng, shows, classes).lower().split()}
    labels = {
        "class": list(classes),
        "context": list(backgrounds.CONTEXTS),
        "colour": [*backgrounds.COLOURS, "its own"],
    }
    return {
        "widths": WIDTHS,
        "subject_dim": SUBJECT_DIM,
        "match_dim": MATCH_DIM,
        "labels": labels,
        "words": sorted(words),
    }


def train(
    scene_folder: Path,
    classes: tuple[str, ...],
    folder: Path,
    minutes: float,
    device: str = "cpu",
    designs_per_batch: int = 32,
) -> None:
    data, shows = vae.pictures(scene_folder)
    torch.manual_seed(0)
    info = card(classes)
    tower, reader = judges.towers(info)
    model = nn.ModuleDict({"tower": tower, "reader": reader}).to(device)
    if (folder / "judge.safetensors").exists():  # go on from an earlier run
        before = load_file(folder / "judge.safetensors")
        model.load_state_dict({key: value.float() for key, value in before.items() if key != "mean"})
    scale = nn.Parameter(torch.tensor(2.5, device=device))
    optimizer = torch.optim.AdamW([*model.parameters(), scale], lr=1e-3, weight_decay=0.05, fused=True)
    plain = shows[:, 3] == scenes.NO_COLOUR
    own = {d: torch.nonzero((shows[:, 1] == d) & plain)[:, 0].numpy() for d in shows[:, 1].unique().tolist()}
    designs, rng, pace, step = list(own), np.random.default_rng(0), Pace(minutes, 1e-3), 0
    while pace.progress < 1:
        picked = rng.choice(len(designs), min(designs_per_batch, len(designs)), replace=False)
        n = len(picked)
        pairs = np.array([rng.choice(own[designs[i]], 2) for i in picked])
        rows = np.concatenate([pairs[:, 0], pairs[:, 1], rng.integers(0, len(data), 2 * n)])
        seen = shows[torch.from_numpy(rows)].to(device)
        x = worn(vae.to_float(data[torch.from_numpy(rows)]).to(device))
        x[3 * n :] = x[3 * n :, torch.randperm(3)] * random_sign(
            n, device
        )  # the last quarter in false colours: shape alone says the class
        h, true = tower(x), slice(0, 3 * n)
        said = [scenes.caption(rng, shows[r].numpy(), classes) for r in rows[true]]
        loss = 2 * F.cross_entropy(tower.probes["class"](F.dropout(h, 0.4)), seen[:, 0], label_smoothing=0.05)
        loss = loss + sum(
            F.cross_entropy(tower.probes[kind](h[true]), seen[true, column], label_smoothing=0.05)
            for kind, column in (("context", 2), ("colour", 3))
        )
        subject = F.normalize(tower.subject(h[: 2 * n]), dim=1)
        loss = loss + info_nce(subject[:n] @ subject[n:].T / 0.1, torch.eye(n, dtype=torch.bool, device=device))
        match, read = F.normalize(tower.match(h[true]), dim=1), F.normalize(reader(reader.ids(said).to(device)), dim=1)
        same = torch.tensor([[a == b for b in said] for a in said], device=device)
        loss = loss + info_nce(match @ read.T * scale.exp().clamp(max=50), same)
        set_lr(optimizer, pace.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            right = (tower.probes["class"](h[true]).argmax(1) == seen[true, 0]).float().mean()
            print(f"judge {step} {pace.used_seconds:.0f}s loss {loss.item():.3f} class {right.item():.2f}", flush=True)
    save(model.cpu(), info, data, folder)


def info_nce(table: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Both ways, with equal captions counted as equally right."""
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(table, target) + F.cross_entropy(table.T, target.T / target.T.sum(1, keepdim=True))) / 2


def worn(x: torch.Tensor) -> torch.Tensor:
    """Turned, zoomed and shifted, a third blurred, a little noise: what a decoder does to a picture must not matter."""
    count, device = len(x), x.device
    angle, zoom = (torch.rand(count, device=device) - 0.5) * 0.6, 1 + (torch.rand(count, device=device) - 0.5) * 0.4
    shift = (torch.rand(count, 2, device=device) - 0.5) * 0.2
    turn = torch.stack(
        [
            torch.stack([angle.cos() * zoom, -angle.sin() * zoom, shift[:, 0]], 1),
            torch.stack([angle.sin() * zoom, angle.cos() * zoom, shift[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    x = F.grid_sample(
        x, F.affine_grid(turn, list(x.shape), align_corners=False), padding_mode="reflection", align_corners=False
    )
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.35, soft, x)
    return x + torch.randn_like(x) * 0.06 * torch.rand(count, 1, 1, 1, device=device)


def random_sign(count: int, device: str) -> torch.Tensor:
    return torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.3, -1.0, 1.0)


@torch.no_grad()
def save(model: nn.ModuleDict, info: dict, data: torch.Tensor, folder: Path) -> None:
    """Half precision, with the mean subject feature of the training scenes, which centres all others."""
    model.eval()
    part = vae.to_float(data[:: max(1, len(data) // 2000)])
    mean = torch.cat([F.normalize(model["tower"].subject(model["tower"](p)), dim=1) for p in part.split(100)]).mean(0)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()} | {"mean": mean.half()}
    save_file(weights, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps(info, indent=1) + "\n")


def auc(features: torch.Tensor, classes: torch.Tensor, designs: torch.Tensor) -> float:
    """Chance that two scenes of one drawing are closer than scenes of two drawings of the same class."""
    table = features @ features.T
    upper = torch.ones_like(table).triu(1).bool()
    same_class = (classes[:, None] == classes[None]) & upper
    same = designs[:, None] == designs[None]
    near, far = table[same_class & same], table[same_class & ~same].sort().values
    return (torch.searchsorted(far, near).double() / len(far)).mean().item()
