"""The same DreamBooth job through other trainers, beside ours, on the same model, photos, class images, steps and seed.

    python -m benchmarks peers diffusers=/path/to/diffusers kohya=/path/to/sd-scripts onetrainer=/path/to/OneTrainer

A checkout is named by whoever wants it compared, and runs with this interpreter or with its own, which is what its
requirements usually need: `kohya=/path/to/sd-scripts,python=/path/to/venv/bin/python`. `plain diffusers` is built in and
always runs. Each job is a process of its own, with few steps and with more: the difference is the speed of a step without
start-up, and the longer one's time is start to finish. A first run warms caches up and is not counted. With `--preset`
ours runs within that budget, too.

    OMP_NUM_THREADS=1 python -m benchmarks peers --model demo diffusers=/path/to/diffusers

compares the steps of the built-in model: diffusers' script and our command get the same line, word for word, and what
`SAME` adds so that ours computes in the same formats. Both are alive at once and take turns (harness/turns.py).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer import models
from trainer.errors import ConfigError

from ..harness import baseline, jobs, turns
from ..harness.others import CHECKOUTS, Command
from ..harness.timing import DEMO, Options

REPEATS = 2
TURNS = turns.Plan(warm=6, steps=5, turns=8, rounds=5)  # on the built-in model
TINY_TURNS = turns.Plan(warm=2, steps=1, turns=2, rounds=2)
SHORT, LONG = 4, 84  # OneTrainer counts epochs, of as many steps as there are photos
TINY = (4, 8)


@dataclass(frozen=True)
class Peer:
    """command: what to run; folder: where; version: of the checkout."""

    command: Command
    folder: Path | None = None
    version: str | None = None


class Failed(Exception):
    def __init__(self, ran: jobs.Ran):
        self.ran = ran


def suite(options: Options) -> Iterator[dict]:
    if options.model == DEMO:
        yield from demo(options)
        return
    known = peers(options)
    short, long = TINY if options.tiny else (SHORT, LONG)
    with jobs.workplace() as place:
        root = Path(place)
        made = jobs.material(options, root)
        for name, peer in known.items():
            row = {"trainer": name, "version": peer.version, "model": options.model, "pixels": made.pixels}
            repeats, warm = (1, False) if options.tiny else (options.repeats, True)
            yield row | measure(peer, made, root / "runs", short, long, repeats, warm=warm)


def measure(
    peer: Peer, made: jobs.Material, folder: Path, short: int, long: int, repeats: int, *, warm: bool = False
) -> dict:
    """One trainer's columns, from pairs of a short and a long job. `warm`: a short one goes before them, because caches on
    disk and compiled kernels would make the first short one slow, and the difference small."""

    def run(steps: int) -> jobs.Ran:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ran = jobs.run(peer.command(made, folder / "run", steps), peer.folder, own=peer.folder is None)
        if ran.code:
            raise Failed(ran)
        return ran

    rates, longer = [], []
    try:
        if warm:
            run(short)
        for _ in range(repeats):
            start = run(short).seconds
            longer.append(run(long))
            rates.append(2 * (long - short) / (longer[-1].seconds - start))
    except Failed as stop:
        return {"exit": stop.ran.code, "failed": stop.ran.tail.strip()[-400:]}
    rated = min(rates) > 0  # else the steps were lost in start-up's noise
    return {
        "exit": 0,
        "images_per_second": round(statistics.median(rates), 4) if rated else None,
        "spread": round((max(rates) - min(rates)) / 2, 4) if rated and repeats > 1 else None,
        "start_to_finish_seconds": round(statistics.median(ran.seconds for ran in longer), 2),
        "steps": long,
        "repeats": repeats,
        "peak_bytes": max(ran.peak_bytes for ran in longer),
    }


def demo(options: Options) -> Iterator[dict]:
    """A row for diffusers' script and one for ours on the built-in model; `speed_against_above`: how many of their steps
    one of ours takes the time of."""
    if len(options.words) != 1 or not options.words[0].startswith("diffusers="):
        raise ConfigError(
            "The built-in model is compared with diffusers' script alone.",
            "Write python -m benchmarks peers --model demo diffusers=/path/to/diffusers",
        )
    theirs = peers(options)["diffusers"]
    plan = TINY_TURNS if options.tiny else TURNS
    with jobs.workplace() as place:
        root = Path(place)
        made = jobs.material(options, root)
        line = theirs.command(made, root / "theirs", plan.total)
        ours = [word if word != root / "theirs" else root / "ours" for word in line[2:]]
        runners = [
            turns.Runner("diffusers", line, rf"\b(\d+)/{plan.total} \[", theirs.folder),
            turns.Runner("ours", jobs.ours([*ours, *SAME]), OUR_STEP, file=root / "ours" / "log.jsonl"),
        ]
        try:
            found = turns.take(runners, root, plan)
        except turns.Ended as stop:
            yield {"trainer": stop.name, "model": DEMO, "exit": stop.code, "failed": stop.said.strip()[-400:]}
            return
    peer = statistics.median(found["diffusers"])
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        yield {
            "trainer": name,
            "version": theirs.version if name == "diffusers" else None,
            "model": DEMO,
            "pixels": made.pixels,
            "seconds": round(middle, 4),
            "spread": round((max(seconds) - min(seconds)) / 2, 4),
            "rounds": [round(each, 4) for each in seconds],
            "images_per_second": round(2 / middle, 4),
            "speed_against_above": round(peer / middle, 3) if name == "ours" else None,
            "steps": plan.steps * plan.turns,
            "repeats": plan.rounds,
        }


# what our command is told beyond diffusers' line: the formats of the script's, no memory saver, nothing beside the training
SAME = (
    *("--precision", "fp32", "--weights", "fp32", "--checkpointing", "off"),
    *("--num_validation_images", 0, "--no-watch", "--dashboard", "off"),
)
OUR_STEP = r'"event": "Step".*?"step": (\d+)'


def peers(options: Options) -> dict[str, Peer]:
    """Who runs: ours, the built-in baseline, and the checkouts that `options.words` name."""
    known = {"ours": Peer(_ours(None))}
    if options.preset:
        known[f"ours, {options.preset}"] = Peer(_ours(options.preset))
    known["plain diffusers"] = Peer(_plain)
    for word in options.words:
        name, _, rest = word.partition("=")
        if name not in CHECKOUTS or not rest:
            raise ConfigError(
                f"{word!r} names no trainer that peers knows.",
                f"Write NAME=FOLDER or NAME=FOLDER,python=FILE, where NAME is one of {', '.join(CHECKOUTS)}.",
            )
        path, *more = rest.split(",")
        python = dict(item.partition("=")[::2] for item in more).get("python") if more else sys.executable
        script, maker = CHECKOUTS[name]
        if options.model == "sdxl":
            script = {"kohya": "sdxl_train.py"}.get(name, script)
        checkout = Path(path).expanduser().resolve()
        if not (checkout / script).is_file():
            raise ConfigError(
                f"{path} is no checkout of {name}: it has no {script}.", "Give the checkout's root folder."
            )
        if python is None or shutil.which(python) is None:
            raise ConfigError(f"{','.join(more)!r} names no Python.", "Write python=/path/to/venv/bin/python.")
        if name == "diffusers" and options.model == "sdxl":
            raise ConfigError(
                "diffusers has no DreamBooth script that trains SDXL's whole UNet (only LoRA).",
                "Leave out diffusers=, or compare with --model sd1.",
            )
        if name == "kohya" and options.tiny:
            raise ConfigError(
                "kohya's sd-scripts cannot train a tiny model: they build the UNet in its public size, whatever the model "
                "says (library/original_unet.py).",
                "Leave out --tiny, or leave out kohya=.",
            )
        known[name] = Peer(maker([python, checkout / script], options), checkout, _version(checkout))
    return known


def _version(checkout: Path) -> str | None:
    said = subprocess.run(["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return said.stdout.strip() or None


def _ours(preset: str | None) -> Command:
    def command(made: jobs.Material, run: Path, steps: int) -> list[object]:
        return jobs.ours(
            [
                *(("--preset", preset) if preset else ()),
                *("--model.name", made.model, "--instance_data_dir", made.photos, "--output_dir", run),
                *("--class_data_dir", made.classes, "--class_name", "dog", "--num_class_images", jobs.CLASS_IMAGES),
                *("--max_train_steps", steps, "--num_validation_images", 0, "--no-watch", "--formats", "diffusers"),
            ]
        )

    return command


def _plain(made: jobs.Material, run: Path, steps: int) -> list[object]:
    code = "from trainer.benchmarks.suites.peers import plain; plain()"
    return [sys.executable, "-c", code, made.model, made.pixels, steps, run]


def plain() -> None:
    """The built-in baseline in a process of its own: 8-bit AdamW, checkpointing, fused attention, everything resident."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pixels", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("run")
    words = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = models.load(words.model)
    mixed = torch.bfloat16 if device.type == "cuda" else None
    recipe = baseline.Recipe(mixed=mixed, eight_bit=True, sdpa=True, checkpointing=True)
    _, step = baseline.stepper(made, recipe, words.pixels, 1, device)
    for _ in range(words.steps):
        step()
    made.family.pipeline(made).save_pretrained(words.run)
