"""The subject's photos, understood before anything is loaded: which pictures, with which words, how often, and what is
wrong with them.

`folders` says which files count, `words` what stands beside them, `looks` what they show, `reading` goes through them; the
answer is an account (`PhotoSet`) that everything else asks. Class images are read by the same eyes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainer.data import augment, crops, folders, looks, prompts
from trainer.data.account import Left, Photo, PhotoSet, counted, names, of_left
from trainer.data.crops import Size, View
from trainer.data.folders import candidates
from trainer.data.prompts import class_prompt, fill, instance_prompt
from trainer.data.reading import MUCH, OUTSIDE, SQUARE_MUCH, Wanted, read_folder
from trainer.data.words import CAPTION_SUFFIXES, Table, Words, listed
from trainer.errors import ConfigError
from trainer.machine import libraries
from trainer.settings.config import Config
from trainer.settings.subsets import subset

__all__ = ["Left", "Photo", "PhotoSet", "candidates", "class_prompt", "instance_prompt", "scan", "scan_class"]


def scan(config: Config, resolution: int | None = None, divides: int = 64) -> PhotoSet:
    """The subject's photos. `resolution`: the model's own, used where [data] names none; `divides`: what sides of
    pictures are multiples of for this model. Raises ConfigError where there is no folder, no usable picture, or more than one meaning."""
    data = config.data
    assert data.instance_data_dir, "the built-in subject's folder is filled in before scanning"
    side = data.resolution or resolution or 512

    def views(size: Size, digest: str) -> list[View]:
        shape = crops.bucket(size, side, crops.bucket_step(side, divides)) if data.buckets else (side, side)
        return augment.views(size, digest, data, shape, config.train.seed)

    typed = config.chosen("data.instance_prompt")
    wanted = Wanted(
        instance_prompt(data),
        side,
        views,
        words=config.provenance["data.instance_prompt"] if typed else "identifier and class_name",
        typed=typed,
        captions=data.captions,
        masks=data.masked_loss,
        places=data.folders,
        flag="--instance_data_dir",
        replace_in=lambda caption: fill(caption, data),
    )
    photos = _read(config, wanted)
    nameless = [photo for photo in photos.photos if photo.words == wanted.words]
    if not (data.class_name or typed) and nameless:
        raise ConfigError(
            _question(photos, nameless),
            f"add --class_name dog (the prompt becomes 'a photo of {data.identifier} dog'), or --instance_prompt",
        )
    if data.masked_loss and not any(photo.mask for photo in photos.photos):
        outside = [f"\n  {left.name} is left out: {left.why}" for left in photos.left if OUTSIDE in left.why]
        raise ConfigError(
            f"masked_loss is on, but no photo {'that is left ' * bool(outside)}has an alpha channel or a mask"
            + "".join(outside),
            "put name.mask.png beside name.jpg (white: subject, black: ignore), or leave --masked_loss out",
        )
    problems = [*photos.problems, *_overruled(photos, wanted)]
    return replace(photos, problems=tuple(problems), advice=tuple(_advice(photos, config)))


def _question(photos: PhotoSet, nameless: list[Photo]) -> str:
    """What a person is asked whose photos have no words, all or some of them; with what was meant as words, it seems."""
    said = len(photos.photos) - len(nameless)
    what = f"{said} of {counted(len(photos.photos), 'photo')} have captions; what do {names(nameless)} show?"
    astray = [text for text in photos.problems if " no picture" in text or text.startswith("captions in ")]
    return "\n  ".join([what if said else "what do the photos show?", *astray])


def mend(config: Config) -> Iterator[str]:
    """Settle what the person's words settle, before the photos are read; see `prompts.mend`."""
    data = config.data
    folders = [Path(folder) for _, folder, _ in map(subset, data.subsets)] or [Path(data.instance_data_dir or "")]

    def captions() -> list[str]:
        return [caption for folder in folders for caption in captions_in(folder, data.folders)] if data.captions else []

    return prompts.mend(config, captions)


def _read(config: Config, wanted: Wanted) -> PhotoSet:
    """The folder, or those of `data.subsets` one after the other, each with its own words and repeats."""
    data = config.data
    if not data.subsets:
        return read_folder(Path(data.instance_data_dir or ""), wanted)
    found: list[PhotoSet] = []
    for repeats, folder, words in map(subset, data.subsets):
        own = replace(wanted, prompt=fill(words, data), words="data.subsets", typed=True) if words else wanted
        photos = read_folder(Path(folder), replace(own, flag="data.subsets:"))
        if repeats is not None:
            photos = replace(photos, photos=tuple(replace(photo, repeats=repeats) for photo in photos.photos))
        found.append(photos)
    return PhotoSet(
        tuple(photo for each in found for photo in each.photos),
        sum(each.ignored for each in found),
        tuple(problem for each in found for problem in each.problems),
        folder=found[0].folder,
        left=tuple(left for each in found for left in each.left),
    )


def scan_class(folder: Path, config: Config, resolution: int) -> PhotoSet:
    """All pictures of the class in `folder`, cut to squares; there need not be any. A prompt that was typed counts before
    the names of numbered folders, captions before both. Raises as `read_folder`."""

    def views(size: Size, digest: str) -> list[View]:
        return [crops.center(size, (resolution, resolution))]

    wanted = Wanted(
        class_prompt(config),
        resolution,
        views,
        words="class_prompt" if config.chosen("prior.class_prompt") else "class_name",
        typed=config.chosen("prior.class_prompt"),
        captions=config.data.captions,
        places="class",
        flag="--class_data_dir",
        subject=False,
        replace_in=lambda caption: fill(caption, config.data),
    )
    return read_folder(folder, wanted)


def in_both(photos: PhotoSet, class_images: PhotoSet) -> list[str]:
    """Pictures that stand in both halves: a sentence each. The halves then pull one picture two ways."""
    found = []
    for photo in photos.photos:
        twin = next(
            (p for p in class_images.photos if p.digest == photo.digest or looks.same(p.bits, photo.bits)), None
        )
        if twin is not None:
            same = "is" if twin.digest == photo.digest else "looks like"
            found.append(
                f"{photo.name} {same} {twin.name} among the class images: the subject is taught as the class, too; "
                f"remove one of them"
            )
    return found


def captions_in(folder: Path, which: str, flag: str = "--instance_data_dir") -> list[str]:
    """What is written beside the pictures, and in the names of numbered folders, before any picture is opened."""
    if not folder.is_dir():
        return []
    found: list[str] = []
    tables = Table.all(folder)
    for place in folders.find(folder, which, flag).places:
        files = candidates(place.folder)
        words = Words(place.folder, files, tables if place.folder == folder else [*Table.all(place.folder), *tables])
        found += [caption or place.words for caption in (words.of(file)[0] for file in files)]
    return [caption for caption in found if caption]


def _overruled(photos: PhotoSet, wanted: Wanted) -> Iterator[str]:
    """Words beside the photos that count before a prompt that was typed, or that count for nothing."""
    captioned = [photo for photo in photos.photos if photo.captioned]
    if wanted.typed and captioned:
        yield (
            f"{len(captioned)} of {counted(len(photos.photos), 'photo')} have captions, which count before "
            f"'{wanted.prompt}' ({wanted.words}); --no-captions trains all on that"
        )


def _not_read(photos: PhotoSet, config: Config) -> Iterator[str]:
    """What stands beside the photos and is not asked for."""
    places = list(dict.fromkeys(Path(photo.path).parent for photo in photos.photos))
    if not config.data.captions:
        unread = sum(1 for folder in places for path in folder.iterdir() if path.suffix.lower() in CAPTION_SUFFIXES)
        if unread:
            yield f"{counted(unread, 'text file')} beside the photos not read: captions are off"
    if not config.data.masked_loss:
        masks = [path.name for folder in places for path in folders.masks(folder).values()]
        if masks:
            yield f"{listed(masks)} taken for masks and not used: --masked_loss weighs the loss by them"


def _worth_buckets(photos: PhotoSet) -> bool:
    return any(1 - photo.kept > MUCH for photo in photos.photos)


def _advice(photos: PhotoSet, config: Config) -> Iterator[str]:
    """What fits so many photos."""
    refused = any(of_left(problem) for problem in photos.problems) and len(photos.left) >= len(photos.photos)
    if not refused and (tip := augment.recommendation(len(photos.photos), config)):  # else those are mended first
        yield tip
    if not looks.can_compare():
        yield f"frames of one burst are not looked for: {libraries.remedy('imagehash')}"
    yield from _not_read(photos, config)
    if config.data.buckets and len({photo.size_cut for photo in photos.photos}) == 1 and _worth_buckets(photos):
        size = " x ".join(map(str, photos.photos[0].size_cut))
        yield f"--buckets changes nothing here: at this size every bucket nearest to a photo is {size} px"
    ordinary = [photo for photo in photos.photos if MUCH < 1 - photo.kept <= SQUARE_MUCH]
    if ordinary and not config.data.buckets:
        yield (
            f"the square crop takes a fifth to a half of {len(ordinary)} of {counted(len(photos.photos), 'photo')}; "
            "--buckets keeps more"
        )
