"""Photos and prompts are encoded once; training then needs neither the VAE nor the text encoder on the card.

A photo becomes the VAE's distribution (mean and standard deviation) for each of its views, a prompt its
embedding. Files are named by what decides their content (picture bytes, view, VAE, precision; token ids, text
encoders), so changing one photo encodes one photo and changing the learning rate encodes nothing. With
cache_latents or cache_text off, the same is done in memory in every run and nothing is left on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainer.data import augment, crops, pictures
from trainer.data.crops import View
from trainer.data.dataset import Dataset, Example
from trainer.data.photos import Photo, PhotoSet, class_prompt
from trainer.data.texts import encode_prompts, token_ids
from trainer.errors import ConfigError
from trainer.events import Notice, Stage
from trainer.files.store import Store, key, module_digest
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts
from trainer.models.vae import encode_pixels
from trainer.policy import Drawing
from trainer.settings.config import Config


@dataclass(frozen=True)
class Encoder:
    """Turns pictures and prompts into what training reads, each once.

    drawing:       precision and tile of the VAE; never fp16, in which SDXL's VAE overflows
    latents, texts: where the results are kept
    """

    parts: Parts
    drawing: Drawing
    device: torch.device
    latents: Store = field(default_factory=lambda: Store(None))
    texts: Store = field(default_factory=lambda: Store(None))

    @classmethod
    def of(cls, parts: Parts, config: Config, drawing: Drawing, device: torch.device) -> Encoder:
        """With the stores that `config` asks for, below its cache folder."""
        cache, memory = Path(config.run.cache_dir), config.memory
        latents = Store(cache / "latents" if memory.cache_latents else None)
        return cls(parts, drawing, device, latents, Store(cache / "texts" if memory.cache_text else None))

    def dataset(
        self, photos: PhotoSet, class_images: PhotoSet | None, config: Config, prompts: Iterable[str] = ()
    ) -> Stage[Dataset]:
        """What is not in the stores yet is encoded.

        prompts: further ones whose embeddings are wanted (validation, negative, guard); the empty one always is
        """
        resolution = config.data.resolution or self.parts.family.resolution
        step, square = bucket_step(self.parts, resolution), (resolution, resolution)
        instance_views = [photo_views(photo, config, resolution, step) for photo in photos.photos]
        jobs = [(photo, view) for photo, views in zip(photos.photos, instance_views, strict=True) for view in views]
        jobs += [(photo, crops.center(photo.size, square)) for photo in (class_images.photos if class_images else ())]
        rows = iter((yield from self.images(jobs)))
        class_words = [class_prompt(config)] if config.prior.with_prior_preservation else []
        of_classes = class_images.prompts if class_images else []
        wanted = list(dict.fromkeys([*photos.prompts, *of_classes, *class_words, "", *prompts]))
        tokens = token_ids(self.parts, wanted)
        texts = {} if config.train.train_text_encoder else (yield from self.prompts(wanted))
        return Dataset(
            [[next(rows) for _ in views] for views in instance_views],
            list(rows),
            [photo.repeats for photo in photos.photos],
            texts,
            tokens,
            self.parts.family,
            square,
            self.parts.latents,
            [photo.repeats for photo in class_images.photos] if class_images else [],
        )

    def prompts(self, prompts: Iterable[str]) -> Stage[dict[str, dict[str, Tensor]]]:
        """Embeddings by prompt."""
        return (yield from encode_prompts(self.parts, prompts, self.device, self.texts))

    def images(self, jobs: Sequence[tuple[Photo, View]]) -> Stage[list[Example]]:
        """One Example per job, from the store or from the VAE."""
        dtype, tile = self.drawing.vae_dtype, self.drawing.tile
        assert dtype != torch.float16, "SDXL's VAE overflows in fp16"
        phase, store = Phase("cache images", self.device), self.latents
        yield phase.start(len(jobs))
        vae = module_digest(self.parts.vae)
        names = [_latent_key(photo, view, vae, dtype, tile) for photo, view in jobs]
        found = [store.get(name, ("mean", "std")) for name in names]
        missing = [index for index, tensors in enumerate(found) if tensors is None]
        done = len(jobs) - len(missing)
        if missing:
            opened: tuple[str, pictures.Picture | None] = ("", None)
            with visiting(self.parts.vae, self.device, dtype) as guest:
                for index in missing:
                    photo, view = jobs[index]
                    if opened[0] != photo.path:  # the views of a photo follow one another: decode it once
                        opened = (photo.path, _reopen(photo))
                    mean, std = encode_pixels(
                        guest, crops.pixels(crops.cut(opened[1].rgb, view))[None].to(self.device), tile
                    )
                    found[index] = {"mean": mean[0].float().cpu(), "std": std[0].float().cpu()}
                    store.put(names[index], found[index])
                    done += 1
                    yield phase.progress(done, photo.name)
        if store.remade:
            yield Notice(f"{store.remade} damaged cache files were made again.")
        examples = [_example(photo, view, tensors) for (photo, view), tensors in zip(jobs, found, strict=True)]
        yield phase.end(f"{len(missing)} pictures encoded, {len(jobs) - len(missing)} from the cache")
        return examples


def photo_views(photo: Photo, config: Config, resolution: int, step: int) -> list[View]:
    """All views of one of the subject's photos: a square, or its aspect-ratio bucket."""
    size = crops.bucket(photo.size, resolution, step) if config.data.buckets else (resolution, resolution)
    return augment.views(photo.size, photo.digest, config.data, size, config.train.seed)


def bucket_step(parts: Parts, resolution: int) -> int:
    """What sides of buckets are multiples of for this model."""
    return crops.bucket_step(resolution, parts.divides)


def _reopen(photo: Photo) -> pictures.Picture:
    """The picture that was scanned. Drawing class images may take an hour, in which a file can go or change."""
    try:
        picture = pictures.read(Path(photo.path))
    except pictures.Unreadable as error:
        raise ConfigError(
            f"{photo.path} was there and is not any more: {error}", "put it back, or start again"
        ) from error
    if picture.digest != photo.digest:
        raise ConfigError(f"{photo.path} has changed since the run began", "start again; what is cached is kept")
    return picture


def _latent_key(photo: Photo, view: View, vae: str, dtype: torch.dtype, tile: int | None) -> str:
    """Everything the latents depend on. The tile counts only where the picture is larger than it."""
    tile = tile if tile is not None and max(view.size) > tile else None
    return key(kind="latents 1", picture=photo.digest, view=asdict(view), vae=vae, dtype=str(dtype), tile=tile)


def _example(photo: Photo, view: View, tensors: dict[str, Tensor]) -> Example:
    height, width = tensors["mean"].shape[1:]
    mask = None if not photo.mask else crops.cut_mask(_read_mask(photo), view, (width, height))
    return Example(
        photo.name,
        tensors["mean"],
        tensors["std"],
        photo.prompt,
        mask,
        view.original_size,
        view.crop_top_left,
        view.target_size,
    )


def _read_mask(photo: Photo) -> Image.Image:
    if photo.mask == "alpha":
        return _reopen(photo).alpha
    return pictures.read(Path(photo.mask)).rgb.convert("L")
