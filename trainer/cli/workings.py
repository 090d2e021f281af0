"""The doctor on a run's own work: tokenizer, files, a training step, adapters, pictures, exports and plots.

Each is done as a run does it, by the same functions, on modules of a few thousand weights with the layout of SD 1.x; what
was written is read back and compared. Together they take seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from trainer.cli.arithmetic import place
from trainer.cli.finding import Line, tried
from trainer.machine.libraries import remedy
from trainer.settings.config import Config, Lora

PROMPT = "a photo of sks dog"
IDS = [49406, 320, 1125, 539, 48136, 1929, 49407]  # CLIP's own, from its published vocabulary
ADAPTERS = "full fine-tuning works; --method lora and dora do not"
PICTURES = "training without pictures works: --num_validation_images 0 with --no-with_prior_preservation"
EXPORT = "training works and saves checkpoints; `export RUN` later makes model files of them"
Values = dict[str, torch.Tensor]


def workings(config: Config) -> Iterator[Line]:
    device, _ = place(config)
    with tempfile.TemporaryDirectory(prefix="doctor-") as made:
        for name, act, packages, without in capabilities(Path(made), device):
            yield tried(name, act, partial(remedy, *packages.split()), without)


def capabilities(folder: Path, device: torch.device) -> Iterator[tuple[str, Callable[[], str], str, str]]:
    """(name, what exercises it, packages that do the work, what works without it; nothing where training needs it)."""
    yield "tokenizer", tokenizer, "transformers tokenizers", ""
    yield "safetensors", partial(round_trip, folder), "safetensors", ""
    yield "built-in model", load_demo, "diffusers transformers accelerate", ""
    yield "training step", partial(step, device), "torch diffusers", ""
    yield "adapters, denoiser", partial(adapters, folder, device, False), "peft", ADAPTERS
    yield "adapters, text encoder", partial(adapters, folder, device, True), "peft", ADAPTERS + " on text encoders"
    yield "pictures", partial(pictures, device), "diffusers", PICTURES
    yield "export, reloaded", partial(export, folder), "diffusers safetensors", EXPORT
    yield "plots", plots, "matplotlib", "everything works; reports come without plots"


def tokenizer() -> str:
    from trainer.models.sd import text

    ids = text.tokenize([text.tokenizer()], [PROMPT])["input_ids"][0].tolist()
    check(ids[: len(IDS)] == IDS and set(ids[len(IDS) :]) == {IDS[-1]}, f"{PROMPT!r} became {ids[: len(IDS)]}")
    return f"{PROMPT!r} has the ids of CLIP's vocabulary"


def round_trip(folder: Path) -> str:
    """Written by our own stream, read by the library, and the other way round."""
    from safetensors.torch import load_file, save_file

    from trainer.files.safetensors_stream import Writer, header

    made = {"half": torch.randn(3, 5).half(), "bytes": torch.arange(7, dtype=torch.uint8)}
    shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
    dtypes = {name: tensor.dtype for name, tensor in made.items()}
    with Writer(folder / "ours.safetensors", shapes, dtypes, {}) as file:
        for name, tensor in made.items():
            file.write(name, tensor)
    same(load_file(folder / "ours.safetensors"), made)
    save_file(made, folder / "theirs.safetensors")
    check(header(folder / "theirs.safetensors").tensors["half"] == ("F16", (3, 5)), "the header reads otherwise")
    same(load_file(folder / "theirs.safetensors"), made)
    return "written and read back, bit for bit"


def load_demo() -> str:
    from trainer.models import load

    default = torch.get_default_dtype()
    try:
        parts = load("demo", dtype=None)
    finally:
        torch.set_default_dtype(
            default
        )  # diffusers leaves the model's where loading breaks off, to whatever comes next
    count = sum(parameter.numel() for module in parts.modules().values() for parameter in module.parameters())
    return f"loaded, {count / 1e6:.0f} million weights"


def step(device: torch.device) -> str:
    """Three steps by the engine that trains, on a fixed target: the loss falls."""
    from trainer.models import SD1

    parts = SD1.tiny()
    learn, _ = trainable(parts, device, text=False)
    losses = [learn() for _ in range(3)]
    check(losses[-1] < losses[0], f"the loss went {losses[0]:.4f} -> {losses[-1]:.4f}")
    return f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in three steps"


def adapters(folder: Path, device: torch.device, text: bool) -> str:
    """Inject, step, save, load into a fresh model, remove."""
    from safetensors.torch import load_file, save_file

    from trainer.models import SD1
    from trainer.models import adapters as peft

    parts, settings = SD1.tiny(), Lora(rank=2)
    before = parts.family.denoise(parts, values(parts, text=True))
    count = peft.inject(parts, settings, text=text)
    learn, engine = trainable(parts, device, text)
    losses = [learn() for _ in range(3)]
    check(losses[-1] < losses[0], f"the loss went {losses[0]:.4f} -> {losses[-1]:.4f}")
    trained = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in engine.master()}
    path = folder / f"adapter-{text}.safetensors"
    save_file(trained, path)

    other = SD1.tiny()
    peft.inject(other, settings, text=text, seed=1)
    _, again = trainable(other, device, text)
    again.load_master(load_file(path))
    same({name: tensor.detach().cpu() for name, tensor in again.master()}, trained)

    third = SD1.tiny()
    peft.inject(third, settings, text=text)
    peft.remove(third)
    after = third.family.denoise(third, values(third, text=True))
    check(torch.equal(before, after), "the model differs after their removal")
    return f"injected ({count} weights), trained, saved, loaded, removed"


def pictures(device: torch.device) -> str:
    from trainer.data.encode import encode_prompts
    from trainer.draw.painter import Painter
    from trainer.draw.sampler import Look
    from trainer.models import SD1
    from trainer.policy import Drawing

    parts = SD1.tiny()
    texts = result_of(encode_prompts(parts, [PROMPT, ""], device, None))
    painter = Painter(parts, Look((64, 64), steps=2), Drawing(), device, texts)
    (picture,) = result_of(painter.paint([PROMPT], [0]))
    check(picture.size == (64, 64) and len(picture.getcolors(64 * 64)) > 1, "the picture is empty")
    return "drawn, 64 x 64"


def export(folder: Path) -> str:
    """Both full formats, compared as they are written; the folder is then opened by diffusers' own pipeline, which draws."""
    from diffusers import StableDiffusionPipeline

    from trainer.models import SD1
    from trainer.out import export as out

    errors = [
        event.max_error
        for event in out.write(SD1.tiny(), None, folder / "model", ["diffusers", "single_file"], "fp32")
        if hasattr(event, "max_error")
    ]
    check(errors == [0.0, 0.0], f"read back with errors of {errors}")
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model" / "diffusers", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, height=64, width=64, num_inference_steps=1)
    return "a folder and a single file, read back; diffusers' pipeline draws from the folder"


def plots() -> str:
    from trainer.readers.view import figures

    check(not figures.GAP, figures.GAP)
    check("<svg" in figures.curve("Loss", [1, 2, 3], [3.0, 2.0, 1.0]), "no SVG came out")
    return "drawn"


def trainable(parts, device: torch.device, text: bool) -> tuple[Callable[[], float], object]:
    """(`learn()`: one step towards a fixed target, its loss; the engine that does it)."""
    from trainer.policy import Policy
    from trainer.step.engine import Engine

    engine = Engine(parts.family.units(parts, text=text), Policy(), device)
    given = {name: tensor.to(device) for name, tensor in values(parts, text).items()}
    target = torch.randn(given["sample"].shape, generator=torch.Generator().manual_seed(1)).to(device)

    def learn() -> float:
        result = engine.step([given], lambda prediction, i: (prediction - target).square().mean(), 1e-2)
        return float(result.losses.flatten()[0])

    return learn, engine


def values(parts, text: bool) -> Values:
    """Inputs of one forward: token ids where the text path is part of it, else an embedding."""
    source, made = torch.Generator().manual_seed(0), {}
    for name, (shape, dtype) in parts.family.inputs(parts, 1, (64, 64), text).items():
        made[name] = torch.randn(shape, generator=source) if dtype.is_floating_point else torch.full(shape, 500)
    return made | (parts.family.tokens(parts, [PROMPT]) if text else {})


def result_of(stage):
    """What a stage returns; its events are for a screen."""
    while True:
        try:
            next(stage)
        except StopIteration as stop:
            return stop.value


def same(found: Values, expected: Values) -> None:
    check(found.keys() == expected.keys(), f"other names came back: {sorted(found.keys() ^ expected.keys())[:2]}")
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    check(not wrong, f"{wrong[:1]} came back with other values")


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)
