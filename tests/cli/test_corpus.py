"""Hundreds of bad inputs, each typed at the program: exit code 2, one error with its fix, a line that must be in it, no
traceback, nothing waited for, and nothing left behind.

    python -m pytest -n0 tests/cli/test_corpus.py                       all of them
    python -m pytest -n0 tests/cli/test_corpus.py -k "pictures-bomb"    one

They lie in tests/corpus/, by kind. A case is the program's entry point in this process, as typed, with the files that it
names: one that hangs is interrupted, and fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from corpus import pictures, runs, settings, weights
from photos import noise_picture

from trainer.__main__ import main
from trainer.models import SD1
from trainer.out import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and devices have no names there")

SECONDS = 10  # of work, for one refusal
HANGS = 120  # seconds after which a case is taken for one that waits for ever, however loaded the machine is


@dataclass(frozen=True)
class Case:
    """`make` what is needed in this folder, then type `words`; `said` must be in the message."""

    name: str
    words: list[str]
    said: str
    make: Callable[[Path], object] = lambda place: None
    code: int = 2
    leaves: tuple[str, ...] = ()  # what may be there afterwards that was not before


def run(*more: str, model: str = "model", photos: str = "photos", output: str = "out") -> list[str]:
    """The words of a run that would work."""
    folders = ["--model", model, "--instance_data_dir", photos, "--output_dir", output]
    return [*folders, "--class_name", "dog", "--resolution", "64", "--dashboard", "off", *more]


def made(path: Path, what: pictures.Made) -> None:
    """A file with this content, or what a function makes of this path."""
    if isinstance(what, (bytes, str)):
        path.write_bytes(what.encode() if isinstance(what, str) else what)
    elif what in pictures.PICTURES:
        path.write_bytes(what())
    else:
        what(path)


def folder_of(files: dict[str, pictures.Made]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / "pictures").mkdir()
        for name, what in files.items():
            made(place / "pictures" / name, what)

    return make


def copied(change: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda place: change(shutil.copytree(place / "model", place / "other")) and None


def trained(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A folder with a checkpoint of step 2, and what becomes of it."""

    def make(place: Path) -> None:
        state = torch.Generator().manual_seed(0).get_state()
        tensors = {"engine.taken": torch.arange(100)}
        batches = {"generator": state, "decks": {}, "class_deck": []}
        (place / "run").mkdir()
        checkpoint.save(
            place / "run", checkpoint.State(2, tensors, None, batches, {"torch": state}, {"model": "another"})
        )
        change(place / "run")

    return make


def cases() -> Iterator[Case]:
    for typed, said in settings.FLAGS.items():
        yield Case(f"flags {typed}", run(*typed.split()), said)
    for name, (flag, value, said) in settings.NAMES.items():
        yield Case(f"names {name}", [*run(), f"--{flag}", value], said)
    for name, (what, said) in settings.TOML.items():
        make = lambda place, what=what: made(place / "mine.toml", what)  # noqa: E731
        yield Case(f"file {name}", ["--config", "mine.toml", *run()], said, make)
    for name, (files, said) in pictures.PHOTOS.items():
        yield Case(f"pictures {name}", run(photos="pictures"), said, folder_of(files))
    for name, (files, said) in pictures.LOOKED_AT.items():
        words = ["photos", "pictures", "--class_name", "dog", "--resolution", "64"]
        yield Case(f"pictures {name}", words, said, folder_of(files), 0, ("runs",))
    for name, (what, said) in weights.FILES.items():
        make = lambda place, what=what: made(place / "model.safetensors", what)  # noqa: E731
        yield Case(f"model {name}", run(model="model.safetensors"), said, make)
    for name, (change, said) in weights.MODELS.items():
        yield Case(f"model {name}", run(model="other"), said, copied(change))
    for name, (change, said) in weights.FOUND_BY_READING.items():
        yield Case(f"model {name}", run(model="other"), said, copied(change), 2, ("out",))
    for name, (change, said) in runs.RUNS.items():
        words = run("--resume_from_checkpoint", "latest", "--max_train_steps", "9", output="run")
        yield Case(f"run {name}", words, said, trained(change))
    for name, (change, typed, said) in runs.TYPED.items():
        yield Case(f"run {name}", [*run(output="run"), *typed.split()], said, trained(change))
    for typed, said in settings.COMMANDS.items():
        yield Case(f"command {typed}", typed.split(), said)


ALL = [*cases()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    SD1.pipeline(SD1.tiny()).save_pretrained(folder / "model")
    for name in ("photos", "empty"):
        (folder / name).mkdir()
    for index in range(2):
        noise_picture((80, 64), index).save(folder / "photos" / f"{index}.png")
    (folder / "old.ckpt").write_bytes(b"pickle")
    (folder / "empty.jsonl").touch()
    return folder


@contextmanager
def interrupted(seconds: int) -> Iterator[None]:
    """What still waits after so many seconds gets a TimeoutError in its way."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still waiting after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", [pytest.param(case, id="-".join(case.name.split())[:80]) for case in ALL])
def test_bad_input_is_refused_in_one_message(case, place, monkeypatch, capsys, record_property):
    monkeypatch.chdir(place)
    whole = {path.name for path in place.iterdir()}
    try:
        case.make(place)
        before = sorted(place.rglob("*"))
        began = time.process_time()
        with interrupted(HANGS):
            code = main(case.words)
        spent = time.process_time() - began
        new = {path.relative_to(place).parts[0] for path in {*place.rglob("*")} - {*before}}
        told = capsys.readouterr()
    finally:
        for path in place.iterdir():
            if path.name not in whole:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    record_property("seconds", round(spent, 2))
    text = told.err if case.code and not case.leaves else told.out + told.err  # a run that began ends on its screen
    assert code == case.code, text
    assert case.said in text, text
    assert "Traceback" not in text and "\x1b" not in text
    assert [text.count(word) for word in ("error: ", "fix: ")] == [1, 1] or not case.code or case.leaves
    assert new <= {*case.leaves}
    assert spent < SECONDS


def test_the_corpus_is_as_large_as_is_said():
    assert len(ALL) >= 150 and len({case.name for case in ALL}) == len(ALL)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"run folders, names | the program | {len(ALL)} | 0 |" in readme
