"""A better DreamBooth, searched: every way to train on few runs, the better half of them on more, by one stated distance.

    shortfall of a measure = how far a mean lies from its goal, as a share of the goal, between 0 and 1
    distance               = root of the sum of their squares; 0 where every goal of GOALS is met

Successive halving (arXiv 1502.07943): rung after rung more subjects and seeds for fewer ways, so that little time is spent on
ways that lose. Each run is a row of results/search.jsonl, and what stands there is not run again: the same command goes
on where it ended, and takes new ways in. `words` may name `ways=a;b`, `minutes=<n>`, `rungs=<n>`, `base=`,
`subjects=`, `judge=`, `cache=<folder>`, where class images wait for the next time, and `halving=no`: all ways run on all
subjects with all seeds, so that the ways that lose have intervals, too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.draw.preview import slug
from trainer.guard import judge
from trainer.run import settle

from ..harness import jobs
from ..harness.rows import RESULTS
from ..harness.timing import Options
from .quality import Prompts, Protocol, Subject, scores, subjects

GOALS = {"fidelity": 0.60, "class_kept": 0.95, "unrelated_drift": 0.30, "prompt": 0.60}  # the second to last: at most
LESS_IS_BETTER = ("unrelated_drift",)
RESTORED = "unrelated_drift_text_restored"  # with the base model's text encoder in place of the trained one
MEASURES = (*GOALS, RESTORED, "context", "class_drift", "seconds")
# Student's t at 97.5 % for 1, 2, ... degrees of freedom
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)

STRIPS = RESULTS / "search"

TEXT, PRIOR, NONE = ["--train_text_encoder"], ["--with_prior_preservation"], ["--no-with_prior_preservation"]


def _steps(count: int) -> list[str]:
    return ["--max_train_steps", str(count)]


def _weight(weight: float) -> list[str]:
    return ["--prior_loss_weight", str(weight)]


def _anchor(share: float) -> list[str]:
    return ["--anchor", str(share)]


def _others(share: float) -> list[str]:
    return ["--others", str(share)]


def _until(step: int) -> list[str]:
    return ["--text_encoder_stop_step", str(step)]


def _dco(temperature: float) -> list[str]:
    return ["--by", "dco", "--temperature", str(temperature)]


HALF = PRIOR + _weight(0.3)
SLOW = [*TEXT, "--text_encoder_lr", "1e-4"]
WORD = [*TEXT, "--text_part", "identifier"]
# Everything that tells the subject from its class by the identifier alone, and answers otherwise as the base model does
TOLD = [*PRIOR, "--by", "prediction", *_others(0.5), "--contrast", "0.5", *WORD, "--text_encoder_lr", "3e-3"]
WAYS: dict[str, list[str]] = {
    "no prior": NONE,
    "no prior, anchor 0.003": NONE + _anchor(0.003),
    "no prior, anchor 0.01": NONE + _anchor(0.01),
    "no prior, half of it": [*NONE, "--strength", "0.5"],
    "no prior, text, anchor 0.01": NONE + TEXT + _anchor(0.01),
    "class images, text": PRIOR + TEXT,
    "class images, text, 600": PRIOR + TEXT + _steps(600),
    "class images, text until 100": PRIOR + TEXT + _until(100),
    "class images 0.3, text": HALF + TEXT,
    "class images 0.3, text, anchor 0.003, 600": HALF + TEXT + _anchor(0.003) + _steps(600),
    "others 0.5, text": PRIOR + TEXT + _others(0.5),
    "others 0.5, text, 600": PRIOR + TEXT + _others(0.5) + _steps(600),
    "class images 0.3, anchor 0.01": HALF + _anchor(0.01),
    "class images 0.1, anchor 0.005": PRIOR + _weight(0.1) + _anchor(0.005),
    "others 0.5, 0.3, anchor 0.003": HALF + _others(0.5) + _anchor(0.003),
    "class images 0.3, slow text, anchor 0.005": HALF + SLOW + _anchor(0.005),
    "word, class images 0.3, anchor 0.005": HALF + WORD + _anchor(0.005),
    "dco 0.03": NONE + _dco(0.03),
    "dco 0.03, anchor 0.005": NONE + _dco(0.03) + _anchor(0.005),
    "dco 0.03, word, anchor 0.005": NONE + WORD + _dco(0.03) + _anchor(0.005),
    "class images 0.3, noisy, anchor 0.005": HALF + _anchor(0.005) + ["--timesteps", "noisy"],
    "class images 0.3, clean, anchor 0.005": HALF + _anchor(0.005) + ["--timesteps", "clean"],
    "class images 0.3, anchor 0.005, 600": HALF + _anchor(0.005) + _steps(600),
    "others 0.5, 0.3, slow text, anchor 0.003": HALF + SLOW + _others(0.5) + _anchor(0.003),
    "predictions 0.3, anchor 0.005": HALF + _anchor(0.005) + ["--by", "prediction"],
    "told apart, anchor 0.005, 600": TOLD + _anchor(0.005) + _steps(600),
    "told apart, anchor 0.01, 600": TOLD + _anchor(0.01) + _steps(600),
    "told apart, anchor 0.02, 600": TOLD + _anchor(0.02) + _steps(600),
    "told apart, LoRA, 700": [*TOLD, "--method", "lora", *_steps(700)],
}


@dataclass(frozen=True)
class Rung:
    """Which runs decide here, and how many ways go on from it."""

    subjects: int
    seeds: int
    ways: int


RUNGS = (Rung(1, 1, 4), Rung(4, 1, 2), Rung(4, 3, 1))
BASE = "base model"  # nothing trained: what class kept and prompt are where nothing is lost
ALWAYS = ("class images, text",)  # what everybody's trainer has: measured on every rung


def suite(options: Options) -> Iterator[dict]:
    asked = dict(word.split("=", 1) for word in options.words if "=" in word)
    base, eye = asked.get("base", "demo"), judge.load(asked.get("judge", "demo"))
    known = subjects(Path(asked["subjects"]) if "subjects" in asked else settle.SUBJECTS)
    ways = {way: WAYS[way] for way in asked["ways"].split(";")} if "ways" in asked else WAYS
    rungs, extra = RUNGS[: int(asked.get("rungs", len(RUNGS)))], []
    done = [] if options.tiny else kept(RESULTS / "search.jsonl")
    if options.tiny:
        ways, rungs = dict([*ways.items()][:1]), (Rung(1, 1, 1),)
        extra = [*_steps(4), "--num_class_images", "2", "--sample_steps", "3"]
    until = time.monotonic() + 60 * float(asked.get("minutes", "inf"))
    with jobs.workplace() as place:
        protocol = Protocol(base, eye, options, Path(asked.get("cache", Path(place) / "cache")))
        before: dict[str, list] = {}
        for number, rung in enumerate(rungs):
            passed = rungs[:number] if asked.get("halving", "yes") == "yes" else ()
            names = going_on(done, list(ways), passed, known)
            for subject, seed, way in due(done, names, rung, known):
                if time.monotonic() > until:
                    return
                about = {"subject": subject.name, "seed": seed, "base": base, "judge": eye.name}
                if subject.name not in before:
                    before[subject.name] = protocol.before(subject)
                    if not any((row["way"], row["subject"]) == (BASE, subject.name) for row in done):
                        untouched = scores(eye, subject, Prompts.of(subject), *[before[subject.name]] * 2)
                        done.append({"way": BASE} | about | untouched)
                        strip(subject, BASE, before[subject.name], options)
                        yield done[-1]
                run = Path(place) / f"run-{len(done)}"
                measured, after = protocol.one(subject, ways[way] + extra, seed, run, before[subject.name])
                if seed == 0:
                    strip(subject, way, after, options)
                done.append({"way": way} | about | measured)
                yield done[-1]


def strip(subject: Subject, way: str, pictures: Sequence[Image.Image], options: Options) -> None:
    """Some of a run's pictures in a row, for the sheets of a report: the subject in its contexts, the class, unrelated
    things."""
    if options.tiny:
        return
    n, b = len(Prompts.of(subject).subject), len(Prompts.of(subject).bare)
    chosen = [pictures[i] for i in (0, 1, 2, 4, 6, 8, n, n + 1, n + b, n + b + 1, n + b + 2)]
    row = Image.new("RGB", (sum(picture.width for picture in chosen), chosen[0].height))
    for place, picture in enumerate(chosen):
        row.paste(picture, (place * picture.width, 0))
    STRIPS.mkdir(parents=True, exist_ok=True)
    row.save(STRIPS / f"{subject.name}.{slug(way, 60)}.webp", quality=85)


def kept(path: Path) -> list[dict]:
    """The runs of an earlier search."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def due(
    done: Sequence[dict], ways: Sequence[str], rung: Rung, known: Sequence[Subject]
) -> Iterator[tuple[Subject, int, str]]:
    """What a rung still lacks."""
    there = {(row["way"], row["subject"], row["seed"]) for row in done}
    for seed in range(rung.seeds):
        for subject in known[: rung.subjects]:
            for way in ways:
                if (way, subject.name, seed) not in there:
                    yield subject, seed, way


def going_on(done: Sequence[dict], ways: Sequence[str], passed: Sequence[Rung], known: Sequence[Subject]) -> list[str]:
    """The ways that are still in the search behind the rungs `passed`, the best first."""
    names = list(ways)
    for rung in passed:
        places = {subject.name for subject in known[: rung.subjects]}
        runs = {
            way: [r for r in done if r["way"] == way and r["subject"] in places and r["seed"] < rung.seeds]
            for way in names
        }
        ranked = sorted((way for way in names if runs[way]), key=lambda way: distance(means(runs[way])))
        names = [*ranked[: rung.ways], *(way for way in ALWAYS if way in ranked[rung.ways :])]
    return names


def means(runs: Sequence[dict]) -> dict[str, float]:
    return {name: sum(run[name] for run in runs) / len(runs) for name in GOALS if all(name in run for run in runs)}


def summary(runs: Sequence[dict]) -> list[dict]:
    """A row for each way: means over its runs, 95 % intervals of them as <name>_ci where there are several runs, and the
    distance to the goal; the nearest first."""
    rows = []
    for way in dict.fromkeys(run["way"] for run in runs):
        mine = [run for run in runs if run["way"] == way]
        row = {"way": way, "subjects": len({run["subject"] for run in mine}), "runs": len(mine)}
        for name in MEASURES:
            if values := [run[name] for run in mine if run.get(name) is not None]:
                row[name] = statistics.mean(values)
                row |= {f"{name}_ci": interval(values)} if len(values) > 1 else {}
        rows.append(row | {"distance": distance(means(mine))})
    return sorted(rows, key=lambda row: row["distance"])


def interval(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % confidence interval, by Student's t."""
    return T95[min(len(values) - 1, len(T95)) - 1] * statistics.stdev(values) / len(values) ** 0.5


def front(rows: Sequence[dict]) -> list[dict]:
    """Of the ways with most runs those that no other beats in both fidelity and unrelated drift, by rising drift."""
    most = max(row["runs"] for row in rows)
    found: list[dict] = []
    for row in sorted(
        (row for row in rows if row["runs"] == most), key=lambda r: (r["unrelated_drift"], -r["fidelity"])
    ):
        if not found or row["fidelity"] > found[-1]["fidelity"]:
            found.append(row)
    return found


def shortfall(name: str, value: float) -> float:
    """Of one measure, as a share of its goal."""
    goal = GOALS[name]
    missing = value - goal if name in LESS_IS_BETTER else goal - value
    return min(1.0, max(0.0, missing / goal))


def distance(found: dict[str, float]) -> float:
    """To the goal, by the measures that a judge has."""
    return sum(shortfall(name, value) ** 2 for name, value in found.items()) ** 0.5
