"""What is left when the run is over: files that diffusers, ComfyUI, A1111 and kohya's scripts open.

    diffusers       a folder for `StableDiffusionPipeline.from_pretrained`
    single_file     one checkpoint in the original key names, for ComfyUI, A1111 and `from_single_file`
    lora_diffusers  adapters for `pipeline.load_lora_weights`
    lora_kohya      adapters in kohya's key names, for ComfyUI and A1111

Tensors stream from the trainer to all files of a format at once, one at a time. What was written is read back and compared
tensor by tensor before it gets its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.events import Event, Exported
from trainer.files.mapped import Stored, forget
from trainer.files.safetensors_stream import Writer, size_bytes
from trainer.files.whole import tidy, whole, whole_folder
from trainer.machine.phase import Phase
from trainer.models import adapters, clip_skip, load, word
from trainer.models.base import Parts
from trainer.out.formats import NAMES, File, files

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
LORA = ("lora_diffusers", "lora_kohya")
PIECE = 2**22  # elements that are compared at a time: a tensor may have 40 million
Weights = Callable[[], Iterable[tuple[str, Tensor]]] | Mapping[str, Tensor] | None


def write(
    parts: Parts,
    weights: Weights,
    folder: Path,
    formats: Sequence[str],
    precision: str = "fp16",
    metadata: Mapping[str, str] | None = None,
    *,
    replace: bool = False,
) -> Iterator[Event]:
    """Write every format into `folder`; an `Exported` event for each once it has been read back.

    weights: the trained values by full name ("unet.conv_in.weight", or adapters' names), as a mapping or as a function
             that gives them anew each time, such as `engine.master` (they are read again for each format, and to compare);
             None = those in `parts`. Whatever it does not name comes from `parts`, and missing parts from their source.
    replace: let finished exports of the same name give way.
    """
    folder = Path(folder)
    full = tuple(name for name in formats if name not in LORA)
    dtype = PRECISIONS[precision]
    trained, known = again(weights), word.words(parts)
    if known:  # what stands in the encoders' places is theirs no more; their files have them
        parts = dataclasses.replace(parts, text_encoders=[])
    parts = _complete(parts) if full else parts
    if known and full:
        trained = word.in_table(trained, known, lambda name: _parameter(parts, name))
    with clip_skip.whole(parts):
        planned = [file for name in formats for file in files(name, parts, folder, precision, dict(metadata or {}))]
        _check_room(folder, planned, dtype, replace)
        phase = Phase("export", "cuda" if torch.cuda.is_initialized() else "cpu")
        yield phase.start(len(formats), ", ".join(formats))
        for done, name in enumerate(formats, start=1):
            own = [file for file in planned if file.format == name]
            values = _values(parts, trained if weights is not None else None, lora=name in LORA)
            said = time.monotonic()
            for exported in _export(own, values, dtype, precision):
                if exported is not None or time.monotonic() - said > 1:
                    yield exported or phase.progress(done - 1, name)
                    said = time.monotonic()
            yield phase.progress(done, name)
        yield phase.end(f"{len(formats)} formats in {folder}")


def _parameter(parts: Parts, name: str) -> Tensor:
    model, _, inner = name.partition(".")
    return parts.modules()[model].get_parameter(inner)


def moved(events: Iterable[Event], model: Path, move: Callable[[Exported], Exported]) -> Iterator[Event]:
    """The events of an export into the folder `model`, from where `move` takes what belongs elsewhere. Emptied it goes."""
    for event in events:
        yield move(event) if isinstance(event, Exported) else event
    if model.is_dir() and not any(model.iterdir()):
        model.rmdir()


def set_others_aside(folder: Path, formats: Sequence[str]) -> Path | None:
    """What lies in `folder` in other formats is of an earlier export, with other weights, and somebody would take the two for
    one model. Moved beside it as a whole once the new one stands; returns where it is, if there was any."""
    others = [folder / name for format, name in NAMES.items() if format not in formats and (folder / name).exists()]
    if not others:
        return None
    names = (f"{folder.name}-older" + (f"-{n}" if n > 1 else "") for n in itertools.count(1))
    older = next(place for name in names if not (place := folder.with_name(name)).exists())
    older.mkdir()
    for path in others:
        path.rename(older / path.name)
    return older


def _complete(parts: Parts) -> Parts:
    """The same parts with missing modules read from their source (they were not trained); what has no
    source is left out."""
    have = {"vae": parts.vae, "text": parts.text_encoders, "tokenizer": parts.tokenizers}
    assert parts.denoiser is not None, "the denoiser was not loaded"
    missing = [name for name, part in have.items() if not part]
    if not missing or not parts.source:
        return parts
    again = load(parts.origin, parts=missing, dtype=None)
    return dataclasses.replace(
        parts,
        vae=parts.vae or again.vae,
        text_encoders=parts.text_encoders or again.text_encoders,
        tokenizers=parts.tokenizers or again.tokenizers,
    )


def again(weights: Weights) -> Callable[[], Iterable[tuple[str, Tensor]]]:
    """`weights` as a function that gives them anew at each call."""
    if weights is None:
        return lambda: ()
    return weights if callable(weights) else lambda: weights.items()


def _values(
    parts: Parts, trained: Callable[[], Iterable[tuple[str, Tensor]]] | None, lora: bool
) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """All tensors of a format by full name, anew at each call: first the trained ones, then what they leave out."""

    def adapter_tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in trained() if trained is not None else adapters.state_dict(parts).items():
            if ".lora_" in name:
                yield adapters.saved_name(name), tensor

    def merged_tensors() -> Iterator[tuple[str, Tensor]]:
        yield from adapters.merged(parts, dict(adapter_tensors()))
        yield from parts.buffers().items()

    def model_tensors() -> Iterator[tuple[str, Tensor]]:
        seen = set()
        if trained is not None:
            for name, tensor in trained():
                seen.add(name)
                yield name, tensor
        for model, module in parts.modules().items():
            for name, parameter in module.named_parameters():
                if f"{model}.{name}" not in seen:
                    yield f"{model}.{name}", parameter.detach()
                    forget(parameter)
        yield from parts.buffers().items()

    if lora:
        return adapter_tensors
    if adapters.injected(parts):
        return merged_tensors
    return model_tensors


def _check_room(folder: Path, planned: list[File], dtype: torch.dtype, replace: bool) -> None:
    """Before the first byte: the targets are free and the disk has room."""
    for file in planned:
        if file.target.exists() and not replace:
            raise ConfigError(f"{file.target} exists", "choose another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}", "choose another output folder") from error
    needed = sum(size_bytes(file.shapes, dtype) for file in planned) + 16 * 2**20
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"the export needs {needed / 2**30:.2f} GiB and {folder} has {free / 2**30:.2f} GiB free",
            "free some space, choose fewer export.formats, or export.precision=fp16",
        )


def _export(
    own: list[File], values: Callable[[], Iterator[tuple[str, Tensor]]], dtype: torch.dtype, precision: str
) -> Iterator[Exported | None]:
    """Write the files of one format under temporary names, compare them, rename. None after every tensor: a large model
    takes minutes, and who leaves this there leaves nothing behind."""
    target = own[0].target
    with (whole_folder if own[0].inside else whole)(target) as part:
        with ExitStack() as stack:
            writers = []
            for file in own:
                path = part / file.inside
                path.parent.mkdir(parents=True, exist_ok=True)
                dtypes = dict.fromkeys(file.shapes, dtype) | file.whole
                writers.append((file, stack.enter_context(Writer(path, file.shapes, dtypes, file.metadata))))
            for name, tensor in values():
                for file, writer in writers:
                    for key, first, change in file.places.get(name, ()):
                        writer.write(key, change(tensor), first)
                yield None
            for file, writer in writers:
                for key, tensor in file.constants.items():
                    writer.write(key, tensor)
        for file in own:
            file.finish(part)
        error = 0.0
        for file in own:
            error = max(error, (yield from _compare(file, part / file.inside, values())))
    size = sum(each.stat().st_size for each in target.rglob("*")) if target.is_dir() else target.stat().st_size
    yield Exported(str(target), own[0].format.replace("_", " "), precision, size, error, own[0].usage)


def _compare(file: File, path: Path, values: Iterator[tuple[str, Tensor]]) -> Generator[None, None, float]:
    """Read the file back: every tensor must be exactly the rounded original. Returns the largest rounding error."""
    worst, left, written = 0.0, dict.fromkeys(file.places), Stored(path)
    for name, tensor in values:
        if name not in file.places:
            continue
        del left[name]
        for key, first, change in file.places[name]:
            value = change(tensor).detach().reshape(-1)
            stored = written[key].reshape(-1)[first : first + value.numel()]
            for expected, found in zip(value.split(PIECE), stored.split(PIECE), strict=True):
                worst = max(worst, _difference(expected.cpu().float(), found, name, f"{path} ({key})"))
                forget(expected, found)
        yield
    assert not left, f"never written: {list(left)[:3]}"
    return worst


def _difference(expected: Tensor, found: Tensor, name: str, place: str) -> float:
    """The largest rounding error of what was read back. Raises ConfigError where it is anything but rounding."""
    if not torch.equal(found, expected.to(found.dtype)):
        if expected.isnan().any():
            raise ConfigError(
                f"{name} holds NaN",
                "the training has diverged: export an earlier checkpoint, and lower train.learning_rate",
            )
        raise ConfigError(
            f"{place} differs from what was written", "the disk is failing or full; export to another one"
        )
    error = (found.float() - expected).abs().max().item() if found.numel() else 0.0
    if error == float("inf"):
        raise ConfigError(f"{name} is too large for this precision", "export.precision=fp32 or bf16")
    return error
