"""The autoencoder: 64 px pictures to 16 x 16 x 4 latents and back, in Stable Diffusion's AutoencoderKL layout.

    loss = |x - D(z + 0.1 noise)| + edges,   z = E(x) of unit variance

Its upper encoder is set, not learned: two strided convolutions copy 4 x 4 patches into channels, in the basis of their
principal components, so only layers at 16 x 16 train and the latents are ready in minutes. The decoder learns afterwards,
under frozen latents and beside the denoiser; the weight on differences keeps outlines crisp where plain L1 would blur them.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .pace import Pace, set_lr

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 64,
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "act_fn": "silu",
}
LOG_VARIANCE = -4.6  # noise of 0.1 on latents of unit variance: what the decoder learns to overlook


def pictures(folder: Path, kind: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """All shards of a kind: (N, 64, 64, 3) bytes and (N, 4) what they show."""
    files = [np.load(path) for path in sorted(folder.glob(f"{kind}-*.npz"))]
    return (
        torch.from_numpy(np.concatenate([f["pictures"] for f in files])),
        torch.from_numpy(np.concatenate([f["shows"] for f in files]).astype(np.int64)),
    )


def to_float(batch: torch.Tensor) -> torch.Tensor:
    """(B, 64, 64, 3) bytes -> (B, 3, 64, 64) in -1..1."""
    return batch.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def edges(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    d = x - y
    return (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()


def patch_basis(data: torch.Tensor, count: int = 32) -> torch.Tensor:
    """Principal components of 4 x 4 patches, as a stride-4 convolution  # (32, 3, 4, 4)"""
    x = to_float(data[:: max(1, len(data) // 3000)])
    patches = F.unfold(x, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    vectors = torch.linalg.eigh(patches.T @ patches / len(patches)).eigenvectors
    return vectors[:, -count:].T.flip(0).reshape(count, 3, 4, 4)


@torch.no_grad()
def start_from_patches(model, basis: torch.Tensor) -> None:
    """Makes the upper encoder an exact change of basis of 4 x 4 patches, every residual branch zero.

    Two stride-2 convolutions copy 2 x 2 neighbourhoods into channels, so nothing is lost and nothing has to be learned
    at the resolutions where learning is dear; the encoder learns at 16 x 16 only."""
    for name, parameter in model.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")):
            parameter.zero_()
    encoder = model.encoder
    half, quarter = (encoder.down_blocks[i].downsamplers[0].conv for i in (0, 1))
    shortcut = encoder.down_blocks[1].resnets[0].conv_shortcut
    for layer in (encoder.conv_in, half, quarter, shortcut, model.quant_conv):
        layer.weight.zero_()
        layer.bias.zero_()
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    for i in range(12):
        shortcut.weight[i, i, 0, 0] = 1
    for i in range(8):
        model.quant_conv.weight[i, i, 0, 0] = 1
    for dy in (0, 1):
        for dx in (0, 1):
            for c in range(3):
                k = 3 * (2 * dy + dx) + c
                half.weight[k, c, dy, dx] = 1
                quarter.weight[:, k, :2, :2] = basis[:, c, dy::2, dx::2]
    encoder.conv_out.weight[4:] = 0
    encoder.conv_out.bias[4:] = LOG_VARIANCE


def basis_of(model) -> torch.Tensor:
    """The basis back from a saved encoder."""
    weight = model.encoder.down_blocks[1].downsamplers[0].conv.weight.detach()[:, :12, :2, :2]  # (32, 12, 2, 2)
    parts = weight.view(-1, 2, 2, 3, 2, 2)  # (32, dy, dx, colour, row, column)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(-1, 3, 4, 4).contiguous()


def encode_patches(model, basis: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The encoder's mean without its copying layers: the same numbers at a tenth of the cost  # (B, 4, 16, 16)"""
    encoder = model.encoder
    h = F.conv2d(x, basis, stride=4)  # (B, 32, 16, 16)
    if torch.is_grad_enabled():
        h.requires_grad_()  # torch 2.13's group norm crashes on the CPU when only its weights want a gradient
    h = encoder.down_blocks[2](h)
    return encoder.conv_out(F.silu(encoder.conv_norm_out(h)))[:, :4]


class Sketch(nn.Module):
    """A throw-away decoder at 16 x 16 that the encoder is trained against: cheap, and as blind as the real one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1)  # noqa: E731
        self.into, self.out = conv(4, width), conv(width, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), conv(width, width)) for _ in range(4)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.into(z)
        for block in self.blocks:
            h = h + block(h)
        return F.pixel_shuffle(self.out(h), 4)


def train_encoder(
    scenes: Path, folder: Path, minutes: float, device: str = "cpu", batch: int = 32, base_lr: float = 2e-3
) -> None:
    """Encoder with a throw-away decoder; latents get unit variance and noise of 0.1, which the real decoder will meet too."""
    from diffusers import AutoencoderKL

    data, _ = pictures(scenes)
    torch.manual_seed(0)
    model, sketch, basis = AutoencoderKL(**CONFIG).to(device), Sketch().to(device), patch_basis(data).to(device)
    start_from_patches(model, basis)
    encoder = model.encoder
    parts = (encoder.down_blocks[2], encoder.conv_norm_out, encoder.conv_out)
    weights = [p for part in parts for p in part.parameters()] + list(sketch.parameters())
    optimizer = torch.optim.AdamW(weights, lr=base_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    pace, step, log = Pace(minutes, base_lr, warmup=0.03), 0, []
    while pace.progress < 1:
        x = to_float(data[torch.randint(len(data), (batch,))]).to(device)
        z = encode_patches(model, basis, x)
        y = sketch(z + torch.randn_like(z) * math.exp(LOG_VARIANCE / 2))
        loss = F.l1_loss(y, x) + edges(y, x) + 0.05 * (z.square().mean((0, 2, 3)) - 1).square().sum()
        set_lr(optimizer, pace.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        log.append(-10 * torch.log10(F.mse_loss(y.detach(), x) / 4).item())
        if step % 100 == 0:
            print(
                f"encoder {step} {pace.used_seconds:.0f}s loss {loss.item():.4f} psnr {np.mean(log[-100:]):.2f}",
                flush=True,
            )
    with torch.no_grad():  # the variance rows of the output stay constant
        encoder.conv_out.weight[4:] = 0
        encoder.conv_out.bias[4:] = LOG_VARIANCE
        x = to_float(data[:2]).to(device)
        assert torch.allclose(model.encode(x).latent_dist.mode(), encode_patches(model, basis, x), atol=1e-3)
    model.save_pretrained(folder)


def train_decoder(
    scenes: Path, folder: Path, minutes: float, device: str = "cpu", batch: int = 8, base_lr: float = 2e-3
) -> None:
    """The real decoder under an encoder that stays as it is, so the denoiser can train on its latents meanwhile."""
    from diffusers import AutoencoderKL

    data, _ = pictures(scenes)
    model = AutoencoderKL.from_pretrained(folder).to(device).train()
    basis = basis_of(model)
    weights = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=base_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    pace, step, saved, log = Pace(minutes, base_lr), 0, time.monotonic(), []
    while pace.progress < 1:
        x = to_float(data[torch.randint(len(data), (batch,))]).to(device)
        with torch.no_grad():
            z = encode_patches(model, basis, x)
            z += torch.randn_like(z) * math.exp(LOG_VARIANCE / 2)
        y = model.decode(z).sample
        loss = F.l1_loss(y, x) + edges(y, x)
        set_lr(optimizer, pace.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        log.append(-10 * torch.log10(F.mse_loss(y.detach(), x) / 4).item())
        if step % 100 == 0:
            print(
                f"decoder {step} {pace.used_seconds:.0f}s loss {loss.item():.4f} psnr {np.mean(log[-100:]):.2f}",
                flush=True,
            )
        if time.monotonic() - saved > 120:
            model.save_pretrained(folder)
            saved = time.monotonic()
    model.save_pretrained(folder)


@torch.no_grad()
def encode_all(scenes: Path, folder: Path, out: Path, kind: str = "train", device: str = "cpu") -> None:
    """Caches the posterior means of all scenes, scaled to unit variance, and writes the factor into the config."""
    from diffusers import AutoencoderKL

    data, _ = pictures(scenes, kind)
    model = AutoencoderKL.from_pretrained(folder).to(device).eval()
    basis = basis_of(model)
    means = torch.cat([encode_patches(model, basis, to_float(part).to(device)).cpu() for part in data.split(64)])
    if kind == "train":
        config = json.loads((folder / "config.json").read_text())
        config["scaling_factor"] = round(1 / means.std().item(), 5)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    factor = json.loads((folder / "config.json").read_text())["scaling_factor"]
    np.save(out / f"latents-{kind}.npy", (means * factor).numpy())
