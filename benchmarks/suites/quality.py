"""The DreamBooth paper's protocol as numbers: is it the subject, does it follow the prompt, and what was forgotten?

    fidelity  similarity of pictures to the photos, between floor (another subject) and ceiling (photo and photo)
    prompt    similarity of pictures to their prompts; context: share whose context the probe names right
    PRES      similarity of bare-class pictures to the real subject: lower is better (arXiv 2208.12242, section 4.3)
    DIV       distance between pictures of one class prompt: higher is better
    drift     how far pictures of the class, and of unrelated prompts, moved from the base model's, same seeds

Rows are ways to train, each over several seeds; a row's spread is the standard deviation over seeds. `words` may name
`subjects=<folder of folders>`, `base=<model>`, `judge=<judge>` and `steps=<n>`, so the same protocol runs on real models.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from trainer import models
from trainer.data import pictures
from trainer.draw.painter import Painter
from trainer.draw.sampler import Look
from trainer.draw.sheet import contact_sheet
from trainer.events import Controls, Finished, PhaseEnded, outcome
from trainer.guard import judge
from trainer.out.checkpoint import found
from trainer.out.strength import Between
from trainer.policy import Drawing
from trainer.run import settle, stages
from trainer.run.revisit import restore
from trainer.settings import overlay
from trainer.step.engine import Engine

from ..harness import jobs
from ..harness.rows import RESULTS
from ..harness.timing import Options

WAYS: dict[str, list[str]] = {
    "no prior preservation": ["--no-with_prior_preservation"],
    "class images": ["--with_prior_preservation"],
    "prior by prediction": ["--with_prior_preservation", "--by", "prediction"],
    "text encoder trained": ["--with_prior_preservation", "--train_text_encoder"],
    "LoRA": ["--method", "lora", "--no-with_prior_preservation"],
}
SEEDS = (0, 1, 2)
CONTEXTS = ("in the snow", "in a forest", "on a beach", "on a blue background")
UNRELATED = ("a photo of a car", "a photo of a tree", "a photo of a house", "a photo of a flower", "a photo of a cup")
PER_PROMPT = 2
LOOK_STEPS = 25


@dataclass(frozen=True)
class Subject:
    """One subject: its photos, and the words of its prompts. `rival` is another subject of the class, or of any."""

    name: str
    folder: Path
    class_name: str
    identifier: str
    rival: Path

    def photos(self, folder: Path | None = None) -> list[Image.Image]:
        return [
            pictures.read(path).rgb
            for path in sorted((folder or self.folder).iterdir())
            if path.suffix.lower() in pictures.PICTURE_SUFFIXES
        ]


@dataclass(frozen=True)
class Prompts:
    """What is drawn: the subject alone and in contexts, the bare class, and things that have nothing to do with it."""

    subject: list[str]
    plain: list[str]  # the same prompts without the identifier: what the judge can read
    bare: list[str]
    unrelated: list[str]

    @classmethod
    def of(cls, subject: Subject) -> Prompts:
        name, kind = f"a photo of {subject.identifier} {subject.class_name}", f"a photo of a {subject.class_name}"
        rows = ["", *(f" {context}" for context in CONTEXTS)]
        return cls(
            [name + row for row in rows for _ in range(PER_PROMPT)],
            [kind + row for row in rows for _ in range(PER_PROMPT)],
            [kind] * 8,
            [p for p in UNRELATED if p != kind] * PER_PROMPT,
        )

    @property
    def all(self) -> list[str]:
        return [*self.subject, *self.bare, *self.unrelated]


def suite(options: Options) -> Iterator[dict]:
    asked = dict(word.split("=", 1) for word in options.words if "=" in word)
    base, ways = (
        asked.get("base", "demo"),
        WAYS if "ways" not in asked else {k: WAYS[k] for k in asked["ways"].split(",")},
    )
    eye = judge.load(asked.get("judge", "demo"))
    seeds = SEEDS[:1] if options.tiny else SEEDS[: int(asked.get("seeds", len(SEEDS)))]
    known = subjects(Path(asked["subjects"]) if "subjects" in asked else settle.SUBJECTS)
    if "only" in asked or options.tiny:
        known = [s for s in known if s.name == asked.get("only", known[0].name)]
    extra = ["--max_train_steps", asked["steps"]] if "steps" in asked else []
    if options.tiny:
        ways, extra = (
            {"class images": WAYS["class images"]},
            ["--max_train_steps", "4", "--num_class_images", "2", "--sample_steps", "3"],
        )
    with jobs.workplace() as place:
        protocol = Protocol(base, eye, options, Path(place) / "cache")
        for subject in known:
            before = protocol.before(subject)
            sheets = {"base model": before}
            for way, flags in ways.items():
                runs = []
                for seed in seeds:
                    run = Path(place) / f"{subject.name}-{way.replace(' ', '-')}-{seed}"
                    measured, after = protocol.one(subject, flags + extra, seed, run, before)
                    runs.append(measured)
                    sheets.setdefault(way, after)
                yield {
                    "subject": subject.name,
                    "way": way,
                    "judge": eye.name,
                    "base": base,
                    "seeds": len(seeds),
                } | spread(runs)
            if not options.tiny:
                sheet(subject, sheets, RESULTS / f"quality-{subject.name}.png")


def subjects(folder: Path) -> list[Subject]:
    """The folders of `folder`; subjects.json beside them (or `<folder>/class_name.txt`) says what they show."""
    facts = (
        json.loads((folder / "subjects.json").read_text(encoding="utf-8"))
        if (folder / "subjects.json").is_file()
        else {}
    )
    places = [place for place in sorted(folder.iterdir()) if place.is_dir()]
    rivals = dict(zip(places, places[1:] + places[:1], strict=True))
    known = []
    for place in places:
        about = facts.get(place.name, {})
        kind = about.get("class_name") or place.name.replace("_", " ")
        known.append(Subject(place.name, place, kind, about.get("identifier", "sks"), rivals[place]))
    return known


@dataclass(frozen=True)
class Protocol:
    """What all rows of a comparison share: the model they start from, who judges, how, and one cache."""

    base: str
    eye: judge.Judge
    options: Options
    cache: Path

    def before(self, subject: Subject) -> list[Image.Image]:
        """What the base model draws."""
        return drawn(models.load(self.base), None, Prompts.of(subject), self.options, tiny=self.options.tiny)

    def one(
        self, subject: Subject, flags: list[str], seed: int, run: Path, before: list[Image.Image]
    ) -> tuple[dict[str, float], list[Image.Image]]:
        """Train once, draw, and measure."""
        there = self._class_bytes()
        began = time.perf_counter()
        seconds = train(words(self.base, subject, seed, run, self.cache) + flags)
        whole = time.perf_counter() - began
        kept = self._class_bytes() - there
        config = overlay.load(file=run / "config.toml")
        parts, engine, _ = restore(found(run)[-1], config, self.options.device)
        Between(parts, config.model).put(engine, config.export.strength)
        prompts, live = Prompts.of(subject), config.train.train_text_encoder
        after = drawn(parts, engine, prompts, self.options, live=live, tiny=self.options.tiny)
        measured = scores(self.eye, subject, prompts, before, after)
        if live:
            measured["unrelated_drift_text_restored"] = self._restored(parts, engine, prompts, before)
        return measured | {
            "seconds": whole,
            "prior_seconds": seconds.get("class images", 0.0),
            "prior_bytes": kept,  # 0 where a way before it drew the same class images
        }, after

    def _restored(self, parts: models.Parts, engine: Engine, prompts: Prompts, before: list[Image.Image]) -> float:
        """How far unrelated prompts moved where the text encoder alone is the base model's again: what is missing of their
        drift is its part."""
        base = models.load(self.base)
        first = len(prompts.subject) + len(prompts.bare)
        rest = replace(prompts, subject=[], plain=[], bare=[])
        parts = replace(parts, text_encoders=base.text_encoders)
        after = drawn(parts, engine, rest, self.options, tiny=self.options.tiny, first=first)
        return judge.drift(self.eye, before[first:], after)

    def _class_bytes(self) -> int:
        folders = self.cache / "class_images", self.cache / "predictions"
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def words(base: str, subject: Subject, seed: int, run: Path, cache: Path) -> list[str]:
    """The command line that every run of a comparison shares: nothing that costs time beside training."""
    return [
        *("--preset", "12gb", "--model.name", base),
        *("--instance_data_dir", str(subject.folder)),
        *("--class_name", subject.class_name, "--identifier", subject.identifier),
        *("--seed", str(seed), "--output_dir", str(run), "--cache_dir", str(cache)),
        *("--no-watch", "--num_validation_images", "0", "--precision", "fp16"),
    ]


def train(words: list[str]) -> dict[str, float]:
    """One run of the trainer to its end; seconds by phase."""
    from trainer.cli.parse import parse

    formats = [] if "--formats" in words else ["--formats", "lora_diffusers" if "lora" in words else "diffusers"]
    seconds: dict[str, float] = {}
    for event in stages.run(parse(words + formats).config(), Controls()):
        if isinstance(event, PhaseEnded):
            seconds[event.phase] = seconds.get(event.phase, 0.0) + event.seconds
        if isinstance(event, Finished) and event.status != "done":
            raise RuntimeError(event.error)
    return seconds


def drawn(
    parts: models.Parts,
    engine: Engine | None,
    prompts: Prompts,
    options: Options,
    *,
    live: bool = False,
    tiny: bool = False,
    first: int = 0,
) -> list[Image.Image]:
    """All prompts, picture i with seed `first` + i, from the base model (`engine` None) or from what was learned."""
    from trainer.data.texts import token_ids

    words = [*prompts.all, ""]
    if live:
        texts = token_ids(parts, words)
    else:
        with torch.no_grad():
            encoded = parts.family.encode_text(parts, words)
        texts = {word: {name: rows[i].float().cpu() for name, rows in encoded.items()} for i, word in enumerate(words)}
    side = parts.family.resolution
    look = Look((side, side), 3 if tiny else LOOK_STEPS, settle.DEMO_GUIDANCE if parts.family.name == "demo" else 7.5)
    painter = Painter(parts, look, Drawing(batch=8), options.device, texts, engine)
    return outcome(painter.paint(prompts.all, list(range(first, first + len(prompts.all)))))


def scores(
    eye: judge.Judge, subject: Subject, prompts: Prompts, before: list[Image.Image], after: list[Image.Image]
) -> dict[str, float]:
    """Every measure of one run, named as in the module's docstring."""
    n, b = len(prompts.subject), len(prompts.bare)
    mine, bare, rest = after[:n], after[n : n + b], after[n + b :]
    photos, rival = subject.photos(), subject.photos(subject.rival)
    fidelity = judge.subject_similarity(eye, mine, photos, rival)
    found = {
        "fidelity": fidelity.value,
        "floor": fidelity.floor,
        "ceiling": fidelity.ceiling,
        "pres": judge.subject_similarity(eye, bare, photos).value,
        "div": judge.diversity(eye, bare),
        "class_drift": judge.drift(eye, before[n : n + b], bare),
        "unrelated_drift": judge.drift(eye, before[n + b :], rest),
    }
    try:
        found["prompt"] = judge.prompt_similarity(eye, mine, prompts.plain).value
    except ValueError:
        found["prompt"] = float("nan")  # a judge that cannot read
    if isinstance(eye, judge.DemoJudge):
        found["class_kept"] = share(judge.probe(eye, bare, "class"), [subject.class_name] * b)
        contexts = [context for context in CONTEXTS for _ in range(PER_PROMPT)]
        found["context"] = share(judge.probe(eye, mine[PER_PROMPT:], "context"), contexts)
    return found


def share(said: list[str], meant: list[str]) -> float:
    return sum(a == b for a, b in zip(said, meant, strict=True)) / len(meant)


def spread(runs: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every measure over the seeds, and its standard deviation as <name>_sd where there are several."""
    row = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        if not values:
            continue
        row[name] = round(statistics.mean(values), 4)
        if len(values) > 1 and name not in ("floor", "ceiling"):
            row[f"{name}_sd"] = round(statistics.stdev(values), 4)
    return row


def sheet(subject: Subject, ways: dict[str, list[Image.Image]], path: Path) -> None:
    """The first seed's pictures, one row for each way, the same prompts and seeds in each column."""
    prompts = Prompts.of(subject)
    n = len(prompts.subject)
    columns = [0, 2, 4, 6, 8, n, n + 1, n + len(prompts.bare)]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [ways[way][i] for way in ways for i in columns]
    captions = [f"{way}: {prompts.all[i]}" for way in ways for i in columns]
    contact_sheet(
        rows,
        captions,
        path,
        columns=len(columns),
        title=f"{subject.name}: the same prompts and seeds after each way of training",
    )
