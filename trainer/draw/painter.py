"""The painter: all that a picture needs beside its words and its seed, put together once.

A run draws class images, the base model's predictions, previews, the guard's pictures and a probe's; each of them is this
one object with another look. Whether the denoiser visits the card or lies in the engine, and what makes room for it,
follows from `engine` and `drawing`, and nobody else asks. Only the denoiser is on the card while latents are drawn, only
the VAE while they become pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from trainer.draw.sampler import Look, Texts, conditions, draw, predict
from trainer.events import Stage
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts
from trainer.models.rows import in_full
from trainer.models.vae import decode_latents
from trainer.policy import Drawing
from trainer.step.engine import Engine


@dataclass(frozen=True)
class Painter:
    """Draws with the weights as they are.

    look:    size, steps, guidance; `replace(painter, look=...)` draws otherwise
    drawing: what the plan allows: pictures at a time, the VAE's precision and tile, what makes room
    texts:   by prompt its embedding, or, where the text encoder learns, its token ids, which the engine then encodes
    engine:  holds the denoiser's weights; None: the denoiser of `parts` visits the card
    """

    parts: Parts
    look: Look
    drawing: Drawing
    device: torch.device
    texts: Texts = field(default_factory=dict)
    engine: Engine | None = None

    def paint(
        self, prompts: Sequence[str], seeds: Sequence[int], phase: Phase | None = None, done: int = 0
    ) -> Stage[list[Image.Image]]:
        """Pictures of prompts[i] from seeds[i]. Progress counts steps of single pictures in `phase`, from `done` on."""
        with self.room():
            with self.on_card(prompts) as brush:
                latents = yield from brush.latents(prompts, seeds, phase, done)
            pictures = []
            for picture in self.developed(latents):
                pictures.append(picture)
                if phase is not None:  # whoever listens may stop here: decoding one takes seconds on a CPU
                    now = done + self.look.steps * len(prompts)
                    yield phase.progress(now, f"{len(pictures)} of {len(prompts)} decoded")
            return pictures

    @contextmanager
    def on_card(self, prompts: Sequence[str]) -> Iterator[Brush]:
        """The denoiser at hand for `prompts`: in the engine that holds it, or visiting."""
        texts = self.embeddings(prompts)
        if self.engine is not None:
            yield Brush(self, self.engine.as_module(self.parts.denoiser, self.parts.family), texts)
            return
        with visiting(self.parts.denoiser, self.device, self.drawing.denoiser_dtype) as denoiser:
            yield Brush(self, denoiser, texts)

    def room(self) -> AbstractContextManager:
        """The optimizer state out of the card's way, where the plan wants that."""
        parks = self.engine is not None and self.drawing.park
        return self.engine.parked() if parks else nullcontext()

    def embeddings(self, prompts: Sequence[str]) -> Texts:
        """What the denoiser reads, by prompt, the negative one's too: cached, or by the text encoder as it is now."""
        words = dict.fromkeys([*prompts, *([self.look.negative] if self.look.guided else [])])
        return {prompt: self._encoded(self.texts[prompt]) for prompt in words}

    def _encoded(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        if "text" in row:
            return row
        assert self.engine is not None, "token ids are encoded by an engine that has the text encoder"
        ids = {name: tokens[None] for name, tokens in row.items()}
        return {name: in_full(self.engine.forward(ids, name)[0]).cpu() for name in self.parts.family.text_values}

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (N, C, H/f, W/f) decoded by the VAE, which visits the card for it."""
        return list(self.developed(latents))

    def developed(self, latents: Tensor) -> Iterator[Image.Image]:
        """The same one after the other."""
        with visiting(self.parts.vae, self.device, self.drawing.vae_dtype) as vae:
            for one in latents.split(1):
                decoded = decode_latents(vae, one.to(self.device), self.drawing.tile)[0]
                row = (decoded * 255).round().byte().permute(1, 2, 0).cpu()  # a quarter of the fp32 bytes
                yield Image.fromarray(row.numpy())


@dataclass(frozen=True)
class Brush:
    """A painter's denoiser while it is on the card, and the embeddings of what it paints."""

    painter: Painter
    denoiser: nn.Module
    texts: Texts

    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], phase: Phase | None = None, done: int = 0
    ) -> Stage[Tensor]:
        """Scaled latents of all prompts on the CPU, (N, C, H/f, W/f), drawn as many at a time as the plan allows."""
        assert len(prompts) == len(seeds)
        painter, look, batch, batches = self.painter, self.painter.look, self.painter.drawing.batch, []
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            for result in draw(
                painter.parts, self.denoiser, self.texts, prompts[rows], seeds[rows], look, painter.device
            ):
                if isinstance(result, Tensor):
                    batches.append(result.cpu())
                elif phase is not None:
                    now = done + result * len(prompts[rows])
                    yield phase.progress(now, f"{now // look.steps} of {phase.total // look.steps} pictures")
            done += look.steps * len(prompts[rows])
        return torch.cat(batches)

    @torch.no_grad()
    def predict(self, samples: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """The denoiser's answer to noised `samples` (B, C, H/f, W/f), fp32 on the card, without guidance."""
        painter = self.painter
        values = conditions(painter.parts, self.texts, prompts, painter.look, painter.device)
        return predict(painter.parts, self.denoiser, samples.to(painter.device), timesteps.to(painter.device), values)
