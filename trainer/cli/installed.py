"""The doctor on what is there: packages against the tested versions, the card, the disk."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from trainer.cli.finding import BROKEN, Line, first
from trainer.machine.libraries import STRANGERS, mended
from trainer.machine.mending import command
from trainer.machine.releases import asked, tested
from trainer.settings.config import Config

IMPORTS = {"pillow": "PIL", "pillow-heif": "pillow_heif", "huggingface-hub": "huggingface_hub"}
EXTRAS = {
    "xformers": "another attention library",
    "pillow-heif": "HEIC photos",
    "tensorboard": "--report_to tensorboard",
    "wandb": "--report_to wandb",
}
SPARED = {  # what works without a package that is asked for, where anything does
    "peft": "full fine-tuning works; --method lora and dora do not",
    "bitsandbytes": "every other --optimizer works; bnb_adamw8bit and bnb_paged_adamw8bit do not",
    "prodigyopt": "every other --optimizer works; prodigy does not",
    "matplotlib": "everything works; reports come without plots",
    "imagehash": "everything works; photos of one burst are not looked for",
}


def versions(config: Config, hidden: Mapping[str, str] | None = None) -> Iterator[Line]:
    """Each package that is asked for, imported. `hidden`: those that were set aside because they do not load, and why."""
    yield Line("python", "ok", platform.python_version())
    needed = asked()
    extras = {name: requirement for name, requirement in asked(extras=True).items() if name in EXTRAS}
    newest = tested()
    for name, requirement in (needed | extras).items():
        yield _package(name, requirement, name in needed, newest.get(name), (hidden or {}).get(name))
    for name, why in (hidden or {}).items():
        if name in STRANGERS and name not in extras:
            yield Line(name, "off", f"does not load and is left aside: {why}", mended(name))


def _package(name: str, requirement: Requirement, needed: bool, newest: str | None, why: str | None) -> Line:
    fix = command(name) if newest else f"pip install '{name}{requirement.specifier}'"
    without = SPARED.get(name, "")
    broken = "off" if not needed else "lost" if without else "bad"
    try:
        version = Version(metadata.version(name))
        if why is None:
            importlib.import_module(IMPORTS.get(name, name))
    except metadata.PackageNotFoundError:
        if not needed:
            return Line(name, "off", f"not installed; optional, for {EXTRAS[name]}")
        return Line(name, broken, f"missing (needs {requirement.specifier})", fix, without)
    except BROKEN as error:
        why = first(error)
    if why is not None:
        return Line(name, broken, f"{version} does not load: {why}", command(name, again=True), without)
    if not requirement.specifier.contains(version, prereleases=True):
        without = "what is tried below says whether this version works"
        return Line(name, "lost" if needed else "off", f"{version} (needs {requirement.specifier})", fix, without)
    if newest and Version(version.public) > Version(newest):
        return Line(name, "off", f"{version} is newer than {newest}, the newest that was tested", fix)
    return Line(name, "ok", str(version))


def card(config: Config) -> Iterator[Line]:
    import torch

    if not torch.cuda.is_available():
        detail = f"no card to use: training runs on the CPU ({torch.get_num_threads()} threads)"
        if torch.version.cuda:
            yield Line("CUDA", "off", detail, "if there is a card, see what nvidia-smi says about its driver")
        else:
            yield Line("CUDA", "off", detail + "; this torch was built without CUDA")
        return
    count = torch.cuda.device_count()
    for index in range(count):
        yield from _one_card(index, "" if count == 1 else f" {index}")
    if count > 1:
        yield from (_joined(index) for index in range(1, count))
        yield _together([torch.cuda.get_device_properties(index) for index in range(count)])


def _one_card(index: int, which: str) -> Iterator[Line]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    major, minor = properties.major, properties.minor
    gib = 2**30
    yield Line(f"card{which}", "ok", f"{properties.name}, compute capability {major}.{minor}")
    yield Line(f"video memory{which}", "ok", f"{free / gib:.1f} of {total / gib:.1f} GiB free")
    if free < 0.6 * total:
        held = f"hold {(total - free) / gib:.1f} GiB"
        yield Line(f"other programs{which}", "off", held, "close them, or choose a smaller --vram_gb")
    bf16 = major >= 8
    yield Line(f"bf16{which}", "ok" if bf16 else "off", "works" if bf16 else "not on this card: fp16 is used")
    yield _learned(torch.device("cuda", index), which)


def _learned(device: Any, which: str) -> Line:
    """What plans know of a card, and how old that is."""
    from trainer.plan.here import learned

    if (found := learned.latest(device)) is None:
        return Line(f"measured{which}", "off", "nothing yet: the first plan or run takes some seconds for that")
    constants, made = found
    return Line(f"measured{which}", "ok", f"{age(time.time() - made)} ago: {', '.join(constants.said(here=True))}")


def age(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} seconds"


def _together(cards: list[Any]) -> Line:
    """Whether --cards can use them."""
    import torch

    count = len(cards)
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        detail = "this torch was built without NCCL, over which cards add up their gradients"
        return Line("several cards", "lost", detail, command("torch"), "a run on one card works")
    detail = f"--cards {count} trains on them together; without it a run uses the first"
    if len({card.name for card in cards}) > 1:
        smallest = min(card.total_memory for card in cards) / 2**30
        detail += f"; each holds the same, so the smallest ({smallest:.1f} GiB) decides what fits, the slowest the pace"
    return Line("several cards", "ok", detail)


def _joined(index: int) -> Line:
    """How fast the first card and another one exchange what training on both sends."""
    import torch

    from trainer.machine import link

    name = f"cards 0 and {index}"
    try:
        found = link.between(torch.device("cuda", 0), torch.device("cuda", index))
    except BROKEN as error:
        return Line(name, "off", f"could not be measured: {first(error)}", "close other programs on the cards")
    path = "by themselves" if found.peer else "through host memory"
    return Line(
        name, "ok", f"{found.rate:.1f} GB/s each way at once, {path}; `plan --cards` assumes 10, or what --link says"
    )


def disk(config: Config) -> Iterator[Line]:
    for name, place, need in (
        ("run folder", Path(config.run.output_dir or "runs"), 10),
        ("model cache", Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")), 7),
    ):
        existing = place.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free / 1e9
        writable = os.access(existing, os.W_OK)
        detail = f"{free:.0f} GB free under {existing}" + ("" if writable else ", not writable")
        enough = free >= need and writable
        option = "--output_dir on another disk" if name == "run folder" else "HF_HOME on another disk"
        state = "ok" if enough else "off" if writable else "bad"
        yield Line(name, state, detail, "" if enough else f"free some space, or set {option}")
