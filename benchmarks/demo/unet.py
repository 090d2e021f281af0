"""The denoiser and its text encoder, trained together from scratch on cached latents.

    loss = min(SNR, 5) / SNR * |eps - eps_theta(z_t, t, text)|^2          (min-SNR, Hang et al. 2023)

Most parameters sit at 4 x 4 and 2 x 2, where a convolution costs a sixteenth of what it costs at 16 x 16: that is what
makes ten million parameters trainable on one CPU core. One caption in ten is empty for classifier-free guidance, and
what is shipped is an exponential average of the weights.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch

from . import backgrounds, scenes, text
from .pace import Pace, set_lr

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 80, 160, 192],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SCHEDULER = {  # Stable Diffusion 1.5's
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
SAVE_EVERY_SECONDS = 180


class Captions:
    """Scene -> token ids; captions are drawn anew each time, their ids remembered."""

    def __init__(self, tokenizer, classes: tuple[str, ...], shows: np.ndarray) -> None:
        self.tokenizer, self.classes, self.shows, self.known = tokenizer, classes, shows, {}
        self.rare = text.rare_words(tokenizer)

    def ids(self, caption: str) -> list[int]:
        if caption not in self.known:
            self.known[caption] = self.tokenizer(
                caption, padding="max_length", max_length=77, truncation=True
            ).input_ids
        return self.known[caption]

    def said(self, rows: np.ndarray, rng: np.random.Generator, empty: float = 0.1) -> list[str]:
        return [
            "" if rng.random() < empty else scenes.caption(rng, self.shows[row], self.classes, self.rare)
            for row in rows
        ]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        return torch.tensor([self.ids(caption) for caption in self.said(rows, rng)])

    def meaning(self, caption: str) -> tuple[int, int, int]:
        """(class, context, colour) that a caption names, one past the end where it names none."""
        thing, context = caption, len(backgrounds.CONTEXTS)
        for index, words in enumerate(backgrounds.CONTEXTS):
            if caption.endswith(words):
                thing, context = caption.removesuffix(words), index
        words, colours = thing.split(), list(backgrounds.COLOURS)
        name = next((i for i, c in enumerate(self.classes) if f" {c} " in f" {thing} "), len(self.classes))
        colour = next(
            (i for i, c in enumerate(colours) if c in words and c not in self.classes[name : name + 1]), len(colours)
        )
        return name, context, colour

    def trained_ids(self) -> torch.Tensor:
        """Every token a caption can hold, rare words excepted: these rows of the embedding learn."""
        rng, ids = np.random.default_rng(0), set(self.ids(""))
        for row in range(min(len(self.shows), 20000)):
            ids.update(self.ids(scenes.caption(rng, self.shows[row], self.classes)))
        self.known.clear()
        return torch.tensor(sorted(ids))


def build(captions: Captions, device: str):
    """A fresh UNet and text encoder; the embedding learns only in the rows that captions use."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel(**CONFIG)
    encoder = CLIPTextModel(CLIPTextConfig(**text.CONFIG))
    owner = token_embedding_owner(encoder)
    table = owner.token_embedding.weight.data.normal_(0, 0.02)
    owner.token_embedding = text.PartlyTrained(table.clone(), captions.trained_ids())
    return unet.to(device), encoder.to(device)


def take_over(model: torch.nn.ModuleDict, folder: Path) -> None:
    """Fill `model` with the finished parts in `folder`, a diffusers pipeline of the same shapes. The head start that text.teach
    gives is in them."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    model["unet"].load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())
    plain = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    table = token_embedding_owner(plain).token_embedding.weight.detach()
    mine = token_embedding_owner(model["text"]).token_embedding
    others = {key: value for key, value in plain.state_dict().items() if "token_embedding." not in key}
    missing = model["text"].load_state_dict(others, strict=False).missing_keys
    assert all("token_embedding." in key for key in missing), missing
    mine.table.copy_(table)
    mine.learned.data.copy_(table[mine.rows])


def timesteps(batch: int, rng: np.random.Generator, late: bool) -> np.ndarray:
    """Stratified; late in training half of them are noisy ones (650 and up), where the caption decides what is drawn.

    Noise that strong hides all but the picture's mean colour, and a short training leaves that to chance: backgrounds came
    out in the colour the first noise happened to have, whatever the caption asked."""
    even = (rng.permutation(batch) + rng.random(batch)) / batch
    return np.where(rng.random(batch) < (0.5 if late else 0.0), 650 + 350 * even, 1000 * even).astype(np.int64)


def token_embedding_owner(encoder: torch.nn.Module) -> torch.nn.Module:
    """transformers moved the embeddings between releases; there is one module that owns `token_embedding`."""
    return next(m for m in encoder.modules() if "token_embedding" in dict(m.named_children()))


def train(
    captions: Captions,
    data: np.ndarray,
    folder: Path,
    pace: Pace,
    device: str = "cpu",
    batch_size: int = 32,
    start: Path | None = None,
) -> None:
    """Trains on latents `data` for the minutes of `pace` altogether, however often it is stopped; `folder/state.pt` holds
    everything to go on. `start` is a finished model to begin with instead of random weights."""
    unet, encoder = build(captions, device)
    model = torch.nn.ModuleDict({"unet": unet, "text": encoder})
    state = folder / "state.pt"
    if start and not state.exists():
        take_over(model, start)
    average = copy.deepcopy(model).requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in weights if p.ndim > 1]
    plain = [p for p in weights if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=pace.base_lr,
        betas=(0.9, 0.99),
        fused=True,
    )
    step, seen = 0, 0
    if state.exists():
        saved = torch.load(state, map_location=device)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, pace.used_before, seen = saved["step"], saved["seconds"], saved.get("pictures", 0)
    elif not start:
        text.teach(encoder, captions, pace.minutes * 0.02, device)
        average["text"].load_state_dict(encoder.state_dict())
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000) ** 2
    alpha = (1 - betas).cumprod(0).to(device)
    rng, losses, last = np.random.default_rng([step, 3]), [], time.monotonic()
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    pace.started = last  # loading and teaching do not count
    while pace.progress < 1:
        batch = batch_size if pace.progress > 0.7 else batch_size // 2  # many cheap steps first, calmer ones later
        rows = rng.integers(0, len(data), batch)
        z = torch.from_numpy(data[rows]).to(device)  # (B, 4, 16, 16)
        words = encoder(captions.batch(rows, rng).to(device))[0]  # (B, 77, 64)
        t = torch.from_numpy(timesteps(batch, rng, late=bool(start) or pace.progress > 0.8)).to(device)
        a = alpha[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(z)
        guess = unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, words).sample
        snr = alpha[t] / (1 - alpha[t])
        loss = ((guess - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) / snr)).mean()
        set_lr(optimizer, pace.lr)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch
        if step % 4 == 0:
            keep = min(0.996, 1 - 1 / (1 + step / 32))
            torch._foreach_lerp_([p for p, _ in pairs], [p.detach() for _, p in pairs], 1 - keep)
        losses.append(loss.detach())
        if step % 100 == 0:
            print(
                f"unet {step} {pace.used_seconds:.0f}s loss {torch.stack(losses[-100:]).mean():.4f} "
                f"lr {pace.lr:.2e} {100 * batch / (time.monotonic() - last):.1f} pictures/s",
                flush=True,
            )
            last = time.monotonic()
            losses.clear()
        if pace.used_seconds - pace.used_before > SAVE_EVERY_SECONDS or pace.progress >= 1:
            pace.used_before, pace.started = pace.used_seconds, time.monotonic()
            save(state, model, average, optimizer, {"step": step, "pictures": seen, "seconds": pace.used_before})


def save(path: Path, model, average, optimizer, counts: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), **counts},
        part,
    )
    part.rename(path)
