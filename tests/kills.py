"""Runs on two processes, one of which is killed at any time; they go on with two or with one, and end with the weights of a run
that nobody disturbed. Every third draws its class images first and goes on with two: a pair on two cards is added up in another
order than on one. CI kills a few (run/test_cards.py); by hand, half an hour on two quiet cores:

    PYTHONPATH=. python tests/kills.py 50

A kill that came after the run's end is made again. `kills.py 50 17` makes the 17th to the 50th.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

STEPS = 8
LINE = (
    f"--device cpu --max_train_steps {STEPS} --checkpointing_steps 1 --train_batch_size 1 --gradient_accumulation_steps 2 --ema "
    "--num_validation_images 0 --no-watch --dashboard off --formats single_file --precision fp32 "
    "--cache_dir {0}/{1}-cache --output_dir {0}/{1} "
)
ALONE = (
    LINE + "--no-with_prior_preservation"
)  # whole micro-batches for each process, so that two add up to the bits of one
DRAWN = LINE + "--by images --num_class_images 16 --sample_steps 6"


def start(words: list[str], cards: int = 2) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "trainer", *words, "--cards", str(cards)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(begun: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    while not there():
        assert begun.poll() is None, begun.stderr and begun.stderr.read()
        time.sleep(0.05)


def ranks(launcher: int) -> dict[int, int]:
    """The launcher's children by their card: those that have begun to be one."""
    found = {}
    for pid in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
        said = dict(word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word)
        if "RANK" in said:
            found[int(said["RANK"])] = pid
    return found


def rank(number: int, launcher: int) -> int:
    return ranks(launcher)[number]


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    return files == sorted(path.name for path in other.glob("*.safetensors")) and all(
        tensors(one / name) == tensors(other / name) for name in files
    )


def undisturbed(words: list[str], cards: int) -> float:
    """Seconds from the first process's begin to the end."""
    begun = start(words, cards)
    if cards > 1:
        wait_for(begun, lambda: bool(ranks(begun.pid)))
    began = time.monotonic()
    _, said = begun.communicate(timeout=600)
    assert begun.returncode == 0, said
    return time.monotonic() - began


def reached(run: Path) -> str:
    """What the run's log told last."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    told = json.loads(lines[-1]) if lines else {"event": "nothing"}
    return " ".join(str(told[key]) for key in ("event", "phase", "step") if key in told)


def killed(words: list[str], seconds: float, number: int) -> tuple[str, float]:
    """Start on two and kill card `number` so long after it begins. Returns what is wrong with how they ended, "missed" where
    they had ended before, or nothing; and the seconds from the kill to the end."""
    begun = start(words)
    wait_for(begun, lambda: number in ranks(begun.pid))
    card = rank(number, begun.pid)
    time.sleep(seconds)
    try:
        os.kill(card, signal.SIGKILL)
    except ProcessLookupError:
        pass
    at = time.monotonic()
    _, said = begun.communicate(timeout=600)
    took = time.monotonic() - at
    if begun.returncode == 0:
        return "missed", took
    fine = begun.returncode == 2 and f"card {number} was ended by SIGKILL" in said and took < 60
    return "" if fine else f"exit code {begun.returncode} after {took:.1f} s: {said[-2000:]}", took


def once(place: Path, number: int, lengths: dict[str, float]) -> tuple[str, str]:
    """One run, killed and gone on with. Returns what is wrong, if anything, and what happened."""
    chance, name = random.Random(number), str(number)
    drawn, cards = number % 3 == 0, 2 if number % 3 == 0 else 1 + number % 2
    kind = "drawn" if drawn else "alone"
    words = (DRAWN if drawn else ALONE).format(place, name).split()
    ended, took = "missed", 0.0
    while ended == "missed":
        for left in place.glob(f"{name}*"):
            shutil.rmtree(left)
        at, card = chance.uniform(0, lengths[kind]), chance.randrange(2)
        ended, took = killed(words, at, card)
    happened = (
        f"{kind}, card {card} killed after {at:.1f} s ({reached(place / name)}), ended in {took:.1f} s, on with {cards}"
    )
    go_on = start([*words, "--resume_from_checkpoint", "latest"], cards)
    _, said = go_on.communicate(timeout=600)
    last = f"step-{STEPS:06d}"
    if go_on.returncode:
        ended += f" exit code {go_on.returncode}: {said[-2000:]}"
    elif not same(place / kind / last, place / name / last):
        ended += " other weights"
    return ended, happened


def main(times: int, first: int = 1) -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        undisturbed(ALONE.format(place, "alone").split(), 1)
        lengths = {"alone": undisturbed(ALONE.format(place, "two").split(), 2)}
        lengths["drawn"] = undisturbed(DRAWN.format(place, "drawn").split(), 2)
        for number in range(first, times + 1):
            wrong, happened = once(place, number, lengths)
            bad += bool(wrong)
            print(f"{number}: {happened}: {wrong or 'the same weights'}", flush=True)
            for left in place.glob(f"{number}*"):
                shutil.rmtree(left)
    made = times + 1 - first
    print(f"{made - bad} of {made} ended with the same weights")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
