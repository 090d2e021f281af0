"""Runs on two processes, one of which is killed at any time; they go on with two or with one, and end with the weights of a run
that nobody disturbed. CI kills a few (run/test_cards.py); by hand, half an hour on two quiet cores:

    PYTHONPATH=. python tests/kills.py 50
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

STEPS = 8
LINE = (  # whole micro-batches for each process, so that two add up to the bits of one
    f"--device cpu --max_train_steps {STEPS} --checkpointing_steps 1 --train_batch_size 1 --gradient_accumulation_steps 2 --ema "
    "--no-with_prior_preservation --num_validation_images 0 --no-watch --dashboard off --formats single_file "
    "--precision fp32 --cache_dir {0}/cache --output_dir {0}/{1}"
)


def start(words: list[str], cards: int = 2) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "trainer", *words, "--cards", str(cards)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(begun: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    while not there():
        assert begun.poll() is None, begun.stderr and begun.stderr.read()
        time.sleep(0.05)


def rank(number: int, launcher: int) -> int:
    """The process of card `number` among the launcher's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    [found] = [int(pid) for pid in children if f"\0RANK={number}\0" in Path(f"/proc/{pid}/environ").read_text()]
    return found


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    return files == sorted(path.name for path in other.glob("*.safetensors")) and all(
        tensors(one / name) == tensors(other / name) for name in files
    )


def killed(words: list[str], seconds: float, number: int) -> int:
    """Start on two, kill card `number` after so long; returns the exit code."""
    begun = start(words)
    time.sleep(seconds)
    try:
        os.kill(rank(number, begun.pid), signal.SIGKILL)
    except (ValueError, FileNotFoundError, ProcessLookupError):  # not begun yet, or done
        pass
    begun.communicate(timeout=600)
    return begun.returncode


def main(times: int) -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    chance, bad = random.Random(0), 0
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        start(LINE.format(place, "undisturbed").split(), 1).communicate()
        length = 1.5 * (time.monotonic() - began)
        for number in range(times):
            words = LINE.format(place, str(number)).split()
            at, card, cards = chance.uniform(0, length), chance.randrange(2), 1 + number % 2
            code = killed(words, at, card)
            go_on = start([*words, "--resume_from_checkpoint", "latest"], cards)
            _, said = go_on.communicate()
            last = f"step-{STEPS:06d}"
            fine = go_on.returncode == 0 and same(Path(place) / "undisturbed" / last, Path(place) / str(number) / last)
            bad += not fine
            result = "the same weights" if fine else f"NOT THE SAME (exit code {go_on.returncode}): {said[-500:]}"
            print(
                f"{number + 1}: card {card} killed after {at:.1f} s (exit code {code}), on with {cards}: {result}",
                flush=True,
            )
    print(f"{times - bad} of {times} ended with the same weights")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
