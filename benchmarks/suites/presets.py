"""Every preset under its own hard cap, through all phases of a real run: class images, cache, step, sample, save, export.

Each runs as a user would start it, in a process of its own; the rows are read from its log. `over_budget` is what the
process took of the card at its peak, context included, minus the budget (negative: it stayed inside). `words` may name
presets (default: all), and `together`: all at once, on a card that holds them all. Bytes are then each process's own, as
the driver counts them, and times are not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
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
        names = list(presets())
        if asked := [*([options.preset] if options.preset else []), *(word for word in options.words if word in names)]:
            names = asked
        elif options.tiny:
            names = [names[0], names[-1]]
        made = jobs.material(options, root, "fp16")  # as models come from the hub
        if "together" not in options.words:
            for name in names:
                yield measure(options, made, root, name)
            return
        with ThreadPoolExecutor(len(names)) as pool:
            for row in as_completed([pool.submit(measure, options, made, root, name, True) for name in names]):
                yield row.result() | {"together": len(names)}


def measure(options: Options, made: jobs.Material, root: jobs.Path, preset: str, together: bool = False) -> dict:
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
        "--resolution",
        made.pixels,
        "--with_prior_preservation",
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
    ran = jobs.run(jobs.ours(words), together=together)
    row = {"preset": preset, "model": options.model, "exit": ran.code, "peak_bytes": ran.peak_bytes}
    if not together:
        row["seconds"] = round(ran.seconds, 2)
    if ran.code != 0 or not (run / "log.jsonl").exists():
        return row | {"failed": ran.tail.strip()[-400:]}
    events = list(log.read(run))
    plan = next(event for event in events if isinstance(event, PlanReady))
    if options.device.type == "cuda":  # on a CPU there is no budget
        row |= {"budget_bytes": plan.budget_bytes, "planned_bytes": max(plan.phases.values(), default=0)}
        row["over_budget_bytes"] = ran.peak_bytes - plan.budget_bytes
    if not together:
        rates = [event.images / event.seconds for event in events if isinstance(event, Step)][2:]
        row |= {"images_per_second": round(median(rates), 3), "spread": round((max(rates) - min(rates)) / 2, 3)}
    for event in events:
        if isinstance(event, PhaseEnded):
            key = f"{event.phase.replace(' ', '_')}_bytes"
            row[key] = max(row.get(key, 0), event.vram_peak_bytes or event.ram_bytes)
    row["status"] = next(event.status for event in events if isinstance(event, Finished))
    return row
