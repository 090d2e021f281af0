"""Every preset under its own hard cap, through all phases of a real run: class images, cache, step, sample, save, export.

Each runs as a user would start it, in a process of its own; the rows are read from its log. `over_budget` is what the
process took of the card at its peak, context included, minus the budget (negative: it stayed inside).
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from trainer.events import Finished, PhaseEnded, PlanReady, Step
from trainer.readers import log
from trainer.settings.overlay import presets

from ..harness import jobs
from ..harness.timing import Options

STEPS = 6


def suite(options: Options) -> Iterator[dict]:
    with jobs.workplace() as place:
        root = jobs.Path(place)
        made = jobs.material(options, root)
        names = list(presets())
        if options.preset:
            names = [options.preset]
        elif options.tiny:
            names = [names[0], names[-1]]
        for name in names:
            yield measure(options, made, root, name)


def measure(options: Options, made: jobs.Material, root: jobs.Path, preset: str) -> dict:
    run = root / f"run-{preset}"
    words = [
        "--preset",
        preset,
        "--model.name",
        made.model,
        "--instance_data_dir",
        made.photos,
        "--class_name",
        "dog",
        "--num_class_images",
        4,
        "--sample_steps",
        4,
        "--max_train_steps",
        STEPS,
        "--num_validation_images",
        1,
        "--sample.steps",
        4,
        "--output_dir",
        run,
        "--formats",
        "single_file",
    ]
    ran = jobs.run(jobs.ours(words))
    row = {
        "preset": preset,
        "model": options.model,
        "exit": ran.code,
        "seconds": round(ran.seconds, 2),
        "peak_bytes": ran.peak_bytes,
    }
    if ran.code != 0 or not (run / "log.jsonl").exists():
        return row | {"failed": ran.tail.strip()[-400:]}
    events = list(log.read(run))
    plan = next(event for event in events if isinstance(event, PlanReady))
    if options.device.type == "cuda":  # on a CPU there is no budget
        row |= {"budget_bytes": plan.budget_bytes, "planned_bytes": max(plan.phases.values(), default=0)}
        row["over_budget_bytes"] = ran.peak_bytes - plan.budget_bytes
    rates = [event.images / event.seconds for event in events if isinstance(event, Step)][2:]
    row |= {"images_per_second": round(median(rates), 3), "spread": round((max(rates) - min(rates)) / 2, 3)}
    for event in events:
        if isinstance(event, PhaseEnded):
            key = f"{event.phase.replace(' ', '_')}_bytes"
            row[key] = max(row.get(key, 0), event.vram_peak_bytes or event.ram_bytes)
    row["status"] = next(event.status for event in events if isinstance(event, Finished))
    return row
