"""Photos and prompts are encoded once; training then needs neither the VAE nor the text encoder on the card.

A photo becomes the VAE's distribution (mean and standard deviation) for each of its views, a prompt its
embedding. Files are named by what decides their content (picture bytes, view, VAE, precision; token ids, text
encoders), so changing one photo encodes one photo and changing the learning rate encodes nothing. With
cache_latents or cache_text off, the same is done in memory in every run and nothing is left on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainer.data import augment, crops, pictures
from trainer.data.crops import View
from trainer.data.dataset import Dataset, Example
from trainer.data.photos import Photo, PhotoSet, class_prompt
from trainer.errors import ConfigError
from trainer.events import Event, Notice
from trainer.files.store import Store, key, module_digest
from trainer.machine.phase import Phase
from trainer.machine.visit import visiting
from trainer.models.base import Parts
from trainer.models.vae import encode_pixels
from trainer.settings.config import Config


def ensure(
    parts: Parts,
    photos: PhotoSet,
    class_images: PhotoSet | None,
    config: Config,
    device: torch.device | str,
    folder: Path,
    *,
    prompts: Iterable[str] = (),
    vae_dtype: torch.dtype = torch.float32,
    tile: int | None = None,
) -> Iterator[Event]:
    """Encode what is not in `folder` yet; returns a Dataset (through `yield from`).

    prompts:   further prompts whose embeddings are wanted (validation, negative, guard); the empty one always is
    tile:      pixels of a VAE tile; default [memory] vae_tile
    vae_dtype: fp32, or bf16 where the budget asks for it; never fp16, in which SDXL's VAE overflows
    """
    assert vae_dtype != torch.float16, "SDXL's VAE overflows in fp16"
    resolution = config.data.resolution or parts.family.resolution
    instance_views = [photo_views(photo, config, resolution, bucket_step(parts, resolution)) for photo in photos.photos]
    square = (resolution, resolution)
    class_photos = class_images.photos if class_images else ()
    jobs = [(photo, view) for photo, views in zip(photos.photos, instance_views, strict=True) for view in views]
    latents = Path(folder) / "latents" if config.memory.cache_latents else None
    jobs += [(photo, crops.center(photo.size, square)) for photo in class_photos]
    examples = yield from images(
        parts, jobs, Store(latents), torch.device(device), vae_dtype, tile or config.memory.vae_tile
    )
    class_words = [class_prompt(config)] if config.prior.with_prior_preservation else []
    wanted = list(
        dict.fromkeys([*photos.prompts, *(class_images.prompts if class_images else ()), *class_words, "", *prompts])
    )
    tokens, texts = token_ids(parts, wanted), {}
    if not config.train.train_text_encoder:
        texts = yield from encode_prompts(parts, wanted, device, Path(folder) if config.memory.cache_text else None)
    rows = iter(examples)
    instances = [[next(rows) for _ in views] for views in instance_views]
    return Dataset(
        instances, list(rows), [photo.repeats for photo in photos.photos], texts, tokens, parts.family, square
    )


def photo_views(photo: Photo, config: Config, resolution: int, step: int) -> list[View]:
    """All views of one of the subject's photos: a square, or its aspect-ratio bucket."""
    size = crops.bucket(photo.size, resolution, step) if config.data.buckets else (resolution, resolution)
    return augment.views(photo.size, photo.digest, config.data, size, config.train.seed)


def bucket_step(parts: Parts, resolution: int) -> int:
    """What sides of buckets are multiples of for this model."""
    divides = parts.latent_factor * 2 ** (len(parts.denoiser.config.block_out_channels) - 1) if parts.denoiser else 64
    return crops.bucket_step(resolution, divides)


def images(
    parts: Parts,
    jobs: list[tuple[Photo, View]],
    store: Store,
    device: torch.device,
    dtype: torch.dtype,
    tile: int | None,
) -> Iterator[Event]:
    """One Example per job, from the store or from the VAE."""
    phase = Phase("cache images", device)
    yield phase.start(len(jobs))
    vae = module_digest(parts.vae)
    names = [_latent_key(photo, view, vae, dtype, tile) for photo, view in jobs]
    found = [store.get(name, ("mean", "std")) for name in names]
    missing = [index for index, tensors in enumerate(found) if tensors is None]
    done = len(jobs) - len(missing)
    if missing:
        opened: tuple[str, pictures.Picture | None] = ("", None)
        with visiting(parts.vae, device, dtype) as guest:
            for index in missing:
                photo, view = jobs[index]
                if opened[0] != photo.path:  # the views of a photo follow one another: decode it once
                    opened = (photo.path, _reopen(photo))
                mean, std = encode_pixels(guest, crops.pixels(crops.cut(opened[1].rgb, view))[None].to(device), tile)
                found[index] = {"mean": mean[0].float().cpu(), "std": std[0].float().cpu()}
                store.put(names[index], found[index])
                done += 1
                yield phase.progress(done, photo.name)
    if store.remade:
        yield Notice(f"{store.remade} damaged cache files were made again.")
    examples = [_example(photo, view, tensors) for (photo, view), tensors in zip(jobs, found, strict=True)]
    yield phase.end(f"{len(missing)} pictures encoded, {len(jobs) - len(missing)} from the cache")
    return examples


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


def token_ids(parts: Parts, prompts: list[str]) -> dict[str, dict[str, Tensor]]:
    """Prompt -> {"input_ids": (77,), ...}; {} where the tokenizers are not loaded."""
    if not parts.tokenizers or not prompts:
        return {}
    ids = parts.family.tokens(parts, prompts)
    return {prompt: {name: rows[i].cpu() for name, rows in ids.items()} for i, prompt in enumerate(prompts)}


def encode_prompts(
    parts: Parts, prompts: Iterable[str], device: torch.device | str, folder: Path | None
) -> Iterator[Event]:
    """Embeddings of `prompts`: returns {prompt: {"text": (77, C), "pooled": (P,) for SDXL}}, fp32 on the CPU."""
    prompts = list(dict.fromkeys(prompts))
    phase = Phase("cache text", device)
    yield phase.start(len(prompts))
    store = Store(folder / "texts" if folder is not None else None)
    encoders, tokens = module_digest(*parts.text_encoders), token_ids(parts, prompts)
    names = parts.family.text_values
    keys = {
        p: key(kind="text 1", encoders=encoders, tokens={n: ids.tolist() for n, ids in tokens[p].items()})
        for p in prompts
    }
    texts = {prompt: store.get(keys[prompt], names) for prompt in prompts}
    missing = [prompt for prompt in prompts if texts[prompt] is None]
    if missing:
        for done, prompt in enumerate(missing, len(prompts) - len(missing) + 1):
            # one encoder on the card at a time: SDXL's two take 3 GiB together
            rows = parts.family.encode_text(parts, [prompt], visit=lambda encoder: visiting(encoder, device))
            texts[prompt] = {name: tensor[0].float().cpu() for name, tensor in rows.items()}
            store.put(keys[prompt], texts[prompt])
            yield phase.progress(done, prompt)
    if store.remade:
        yield Notice(f"{store.remade} damaged cache files were made again.")
    yield phase.end(f"{len(missing)} prompts encoded, {len(prompts) - len(missing)} from the cache")
    return texts
