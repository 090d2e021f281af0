"""Everything that can go wrong at every file operation of a run, one at a time, and what the next start makes of it.

    python tests/sweep.py kill default          SIGKILL before each operation
    python tests/sweep.py empty default         SIGKILL when a file was just made, and nothing is in it
    python tests/sweep.py half default          SIGKILL in the middle of a file: half of it is there
    python tests/sweep.py full lora-ema         a full disk from each operation on
    python tests/sweep.py damage default        each file that a run left: gone, emptied, cut in half, one bit flipped
    python tests/sweep.py random default 300    SIGKILL after a random time, 300 times
    python tests/sweep.py half default 20       20 of the cases at random

A case is good where the next start, with the same words and `--resume_from_checkpoint latest`, ends with the bits of the run
that nothing happened to; a damaged file may also be refused by its name. A damaged class image stays beside the one that is
drawn for it. The last line is the README's row. An audit hook (`sys.addaudithook`) hears of every operation. All is imported
once and each start is a fork of that, so that hundreds are cheap. A random dozen is taken by tests/run/test_sweep.py.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.__main__ import main
from trainer.models import SD1
from trainer.out import checkpoint

BASE = (
    "--class_name dog --resolution 64 --num_class_images 2 --sample_steps 1 --max_train_steps 3 --checkpointing_steps 1 "
    "--checkpoints_total_limit 1 --num_validation_images 1 --sample.steps 1 --validation_steps 2 --watch --judge none "
    "--interval 2 --formats diffusers single_file --device cpu --dashboard off"
)
LORA = "--method lora --with_prior_preservation --formats lora_diffusers lora_kohya"
RUNS = {
    "default": "",
    "lora": LORA,
    "lora-ema": f"{LORA} --ema",
    "ema": "--ema --gradient_accumulation_steps 2",
    "prediction": "--by prediction --contrast 0.5 --others 0.5",
    "streamed": "--stream state",
    "early": "--stream state --gradients ram --early_updates",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
Hook = Callable[[str, tuple], None]
Case = tuple[str, str]  # what was done, and what is wrong with what came of it: empty where nothing is


# ------------------------------------------------------------------------------------------- what happens at an operation


class Operations:
    """An audit hook that counts what changes files below `folder` and calls `act` from operation number `at` on."""

    def __init__(self, folder: Path, at: int, act: Hook):
        self.folder, self.at, self.act = str(folder.resolve()), at, act
        self.count, self.busy = 0, False

    def __call__(self, event: str, given: tuple) -> None:
        if self.busy or not self._changes(event, given):
            return
        self.count += 1
        if self.count >= self.at:
            self.busy = True
            try:
                self.act(event, given)
            finally:
                self.busy = False

    def _changes(self, event: str, given: tuple) -> bool:
        if not given or isinstance(given[0], int) or (event == "open" and not (given[2] or 0) & WRITES):
            return False  # open already, or for reading
        if event != "open" and event not in CHANGES:
            return False
        if event in ("os.remove", "os.rmdir") and given[-1] not in (-1, None):
            return True  # whoever empties a folder (shutil.rmtree) names what is in it by the folder's descriptor
        return os.path.abspath(os.fsdecode(given[0])).startswith(self.folder)


def kill(event: str, given: tuple) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def empty(event: str, given: tuple) -> None:
    """The file is made, or emptied, and nothing is in it yet. (A file without a name is opened as its folder.)"""
    if event == "open" and given[2] & (os.O_CREAT | os.O_TRUNC) and not os.path.isdir(given[0]):
        os.close(os.open(given[0], given[2] & ~os.O_EXCL, 0o666))
    kill(event, given)


def half(event: str, given: tuple) -> None:
    """What is about to get its name, or the last file in it, is half written."""
    if event == "os.rename" and os.fspath(given[0]).endswith(".part"):
        files = [path for path in (Path(given[0]), *sorted(Path(given[0]).rglob("*"))) if path.is_file()]
        for path in files[-1:]:
            os.truncate(path, path.stat().st_size // 2)
    kill(event, given)


def full(event: str, given: tuple) -> None:
    """No new file, no longer one: what a full disk refuses. Renames and removals work."""
    if event in ("open", "os.mkdir", "os.link", "os.symlink"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(given[0]))


# ----------------------------------------------------------------------------------------------- what happens to a file


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


# acts, and the events at which they do something else than a kill or a full disk one operation later
ACTS = {"kill": kill, "empty": empty, "half": half, "full": full}
AT = {"empty": r"open ", "half": r"os\.rename .*\.part$", "full": r"open |os\.mkdir "}
DAMAGE = (gone, emptied, cut, flipped)


# --------------------------------------------------------------------------------------------------------------- starts


@dataclass(frozen=True)
class Ended:
    """How a start ended. code: the exit code, or minus the signal; said: both streams."""

    code: int
    said: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def mendable(self) -> bool:
        return self.code == 2 and "fix: " in self.said and not self.traceback


class Place:
    """A folder with a small model and photos, and the runs that are made in it."""

    def __init__(self, folder: Path, run: str):
        self.folder, self.more = folder, RUNS[run].split()
        SD1.pipeline(SD1.tiny()).save_pretrained(folder / "model")
        (folder / "photos").mkdir()
        generator = torch.Generator().manual_seed(0)
        for index in range(3):
            small = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
            Image.fromarray(small).resize((80, 64 + 16 * index)).save(folder / "photos" / f"{index}.png")

    def words(self, *more: str) -> list[str]:
        places = {"model": "model", "instance_data_dir": "photos", "cache_dir": "cache", "output_dir": "run"}
        given = [word for flag, path in places.items() for word in (f"--{flag}", str(self.folder / path))]
        return [*given, *BASE.split(), *self.more, *more]

    def start(self, *more: str, hook: Hook | None = None, seconds: float | None = None) -> Ended:
        """One start in a process of its own, `hook` hearing its audit events; killed after `seconds`."""
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                os._exit(_child(self.words(*more), said.fileno(), hook))
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            return Ended(status, said.read())

    def clear(self) -> None:
        for name in ("run", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def result(self) -> dict[str, str]:
        """What a run ended with, by name: the tensors of its checkpoints and exports, what the next step would draw, its
        pictures and its class images."""
        run, cache, points = self.folder / "run", self.folder / "cache", checkpoint.found(self.folder / "run")
        files = [file for point in points for file in point.glob("*.safetensors")]
        files += [*run.glob("model/**/*.safetensors"), *run.glob("samples/**/*.png")]
        found = {path.relative_to(self.folder).as_posix(): _digest(path) for path in files}
        found |= {self.class_image(path): "" for path in cache.glob("class_images/**/*.png")}
        for point in points:
            state = checkpoint.says(point)  # nothing, where it is damaged
            found[f"{point.name} batches"] = json.dumps([state.get("step"), state.get("batches")], sort_keys=True)
        return found

    @staticmethod
    def class_image(path: Path) -> str:
        """Known by what it shows: one that is drawn again beside its damaged file gets another name."""
        return f"class image {_digest(path)}"

    def parts(self) -> list[str]:
        """What a start left between its files, and should not have."""
        return [path.name for name in ("run", "cache") for path in (self.folder / name).rglob(".*.part")]


def _child(words: list[str], said: int, hook: Hook | None) -> int:
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        if hook is not None:
            sys.addaudithook(hook)
        code = main(words)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _digest(path: Path) -> str:
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- sweeps


class Sweep:
    """All cases of one kind in one place, compared with a run that nothing happened to."""

    def __init__(self, folder: Path, run: str):
        torch.set_num_threads(1)
        self.place = Place(folder, run)
        assert main(self.place.words()) == 0, "imports everything once, for all that are forked"
        gc.collect()
        gc.freeze()  # a child that collects garbage would copy all that it shares with this process
        self.place.clear()
        box = folder / "operations"
        box.touch()
        note = Operations(folder, 1, lambda event, given: box.write_text(f"{box.read_text()}{event} {given[0]}\n"))
        began = time.monotonic()
        first = self.place.start(hook=note)
        self.seconds = time.monotonic() - began
        assert first.code == 0, first.said
        self.operations, self.expected = box.read_text().splitlines(), self.place.result()
        assert any(name.startswith("class image") for name in self.expected) or run == "prediction", (
            "no class images were drawn"
        )
        assert any(name.startswith("run/model") for name in self.expected), "no model was exported"

    def numbers(self, kind: str) -> list[int]:
        """The operations, from 1 on, at which an act of this kind makes a difference."""
        return [number for number, said in enumerate(self.operations, 1) if re.match(AT.get(kind, ""), said)]

    def struck(self, act: Hook, numbers: list[int]) -> Iterator[Case]:
        """`act` at each of these operations of a new run, then the next start."""
        for number in numbers:
            self.place.clear()
            ended = self.place.start(hook=Operations(self.place.folder, number, act))
            fine = ended.mendable or ended.code == 0 if act is full else ended.code == -signal.SIGKILL
            wrong = "" if fine and not ended.traceback else f"ended with {ended.code}: {ended.said[-1500:]}"
            yield f"{act.__name__} {number}", wrong or self._goes_on()

    def random_kills(self, count: int) -> Iterator[Case]:
        for _ in range(count):
            self.place.clear()
            after = random.uniform(0.02, self.seconds)
            self.place.start(seconds=after)
            yield f"after {after:.2f} s", self._goes_on()

    def interrupted(self) -> list[Path]:
        """Keep a run of two of the three steps, and its cache; what files they are."""
        self.place.clear()
        assert self.place.start("--max_train_steps", "2").code == 0
        kept = self.place.folder / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        for name in ("run", "cache"):
            shutil.copytree(self.place.folder / name, kept / name)
        return sorted(
            path.relative_to(kept) for path in kept.rglob("*") if path.is_file() and not path.name.endswith(".lock")
        )

    def damaged(self, files: list[tuple[Path, Callable[[Path], None]]]) -> Iterator[Case]:
        for path, how in files:
            self.place.clear()
            for name in ("run", "cache"):
                shutil.copytree(self.place.folder / "kept" / name, self.place.folder / name)
            how(self.place.folder / path)
            yield f"{path} {how.__name__}", self._goes_on(or_names=path)

    def _goes_on(self, or_names: Path | None = None) -> str:
        """What is wrong with the next start, if anything."""
        again = self.place.start("--resume_from_checkpoint", "latest")
        if (
            or_names is not None
            and again.mendable
            and (or_names.name in again.said or or_names.parent.name in again.said)
        ):
            return ""
        if again.code != 0 or again.traceback:
            return f"the next start ended with {again.code}: {again.said[-1500:]}"
        stays = set()
        if or_names is not None and (path := self.place.folder / or_names).suffix == ".png" and path.exists():
            stays = {self.place.class_image(path)}
        differs = [name for name in different(self.expected, self.place.result()) if name not in stays]
        if differs:
            return f"differs: {differs[:6]}"
        return f"left behind: {left}" if (left := self.place.parts()) else ""


def different(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What one of the two has and the other has not, or not so."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def cases(sweep: Sweep, kind: str, count: int | None) -> Iterator[Case]:
    """All cases of `kind`, or so many of them at random."""
    if kind == "random":
        yield from sweep.random_kills(count or 100)
        return
    if kind == "damage":
        files = [(path, how) for path in sweep.interrupted() for how in DAMAGE]
        yield from sweep.damaged(random.sample(files, min(count, len(files))) if count else files)
        return
    numbers = sweep.numbers(kind)
    yield from sweep.struck(ACTS[kind], random.sample(numbers, min(count, len(numbers))) if count else numbers)


WORDS = {
    "kill": "SIGKILL before a file operation",
    "empty": "SIGKILL when a file was just made",
    "half": "SIGKILL in the middle of a file",
    "full": "a full disk from a file operation on",
    "damage": "a file gone, emptied, cut in half, one bit flipped",
    "random": "SIGKILL after a random time",
}


def report(kind: str, run: str, count: int | None = None) -> int:
    """Print every case that is wrong, then the counts; returns how many are."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), run)
        print(f"{len(sweep.operations)} file operations", flush=True)
        began, done, bad = time.monotonic(), 0, 0
        for case, wrong in cases(sweep, kind, count):
            done, bad = done + 1, bad + bool(wrong)
            if wrong:
                print(f"WRONG {case}: {wrong}", flush=True)
            elif done % 25 == 0:
                print(f"{done} cases, {bad} wrong", flush=True)
        print(f"{(time.monotonic() - began) / max(done, 1):.1f} s a case; the README's row:")
        print(f"| {WORDS[kind]} | {run} | {done}{' at random' if count else ''} | {bad} |", flush=True)
        return bad


if __name__ == "__main__":
    kind, run, *count = sys.argv[1:]
    sys.exit(bool(report(kind, run, int(count[0]) if count else None)))
