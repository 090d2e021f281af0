"""`RUN/report.html`: what happened in a run, in one file that needs nothing else.

It is written from the log and the pictures that this names, at the end of a run, at its interruption, and again at any
time with `python -m trainer report RUN`. Pictures are embedded small, plots as vectors; it reads in light and dark, on a desk and on a
phone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

from trainer.files.whole import whole
from trainer.machine import libraries
from trainer.readers import log
from trainer.readers.view import figures
from trainer.readers.view.lines import duration, gib, number
from trainer.readers.view.page import locate, page, picture, plots, section, spread, table
from trainer.readers.view.state import RunState, replay, settings
from trainer.readers.view.usage import usage

NAME = "report.html"
STEPS, PICTURES = 12, 24  # at most so many columns of samples, and photos or class images
SAID = 200  # lines of libraries
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def main(run: Path) -> int:
    """Write the report anew and say where it is."""
    print(write(run))
    return 0


def write(run: Path) -> Path:
    """RUN/report.html from RUN/log.jsonl; a report that is already there is replaced in one go."""
    run = Path(run)
    state = replay(log.read(run))
    folder = run if run.is_dir() else run.parent
    path = folder / NAME
    with whole(path) as part:
        part.write_text(render(state, folder), encoding="utf-8")
    return path


def render(state: RunState, run: Path) -> str:
    """The page of a run whose files lie in `run`."""
    title = title_of(state)
    return page(title, [part(state, run) for part in PARTS])


def title_of(state: RunState) -> str:
    named = f"a photo of {state.setting('data.identifier', '')} {state.setting('data.class_name', '')}".strip()
    return state.setting("data.instance_prompt") or named


def heading(state: RunState, run: Path) -> str:
    status = state.finished.status if state.finished else "running or broken off"
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.begun)) if not math.isnan(state.begun) else ""
    facts = " · ".join(escape(f) for f in ((state.started.model, state.started.device) if state.started else ()) if f)
    style = status if status in ("done", "failed") else "interrupted"
    resumed = f" · resumed {len(state.gaps)} ×" if state.gaps else ""
    lines = [
        f"<h1>{escape(title_of(state))}</h1>",
        f'<p class="muted">{facts}</p>',
        f'<p><span class="status {style}">{escape(status)}</span> '
        f'<span class="muted">· {started}{resumed} · {escape(str(run))}</span></p>',
    ]
    if state.finished and state.finished.error:
        lines.append(f'<p class="bad">{escape(state.finished.error)}</p>')
    return "<header>" + "".join(lines) + tiles(state) + "</header>"


def tiles(state: RunState) -> str:
    """The numbers one looks for first."""
    step, smooth = state.step, state.smooth[-1] if state.smooth else None
    budget = state.plan.budget_bytes if state.plan else 0
    facts: list[tuple[str, str]] = (
        [(duration(state.clock(state.time)), "whole run")] if not math.isnan(state.begun) else []
    )
    if step and smooth:
        facts += [(f"{step.step}", f"steps of {step.total}"), (number(smooth.instance), "instance loss, smoothed")]
        facts += [(number(smooth.cls), "class loss, smoothed")] if state.has_prior else []
        facts += [
            (f"{1 / state.step_seconds:.2f}" if state.step_seconds else "-", "steps a second"),
            (f"{state.images_per_second:.2f}", "images a second"),
        ]
    if state.vram_peak_bytes:
        plan = f", {gib(state.planned_bytes)} planned" if state.planned_bytes else ""
        facts.append((gib(state.vram_peak_bytes), f"VRAM peak{plan}" + (f", {gib(budget)} budget" if budget else "")))
    else:
        facts += [(gib(max(s.ram_bytes for s in state.steps)), "RAM")] if state.steps else []
    return f'<div class="tiles">{"".join(_tile(value, name) for value, name in facts)}</div>' if facts else ""


def _tile(value: str, name: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def warnings(state: RunState, run: Path) -> str:
    said = dict.fromkeys((n.text, n.fix) for n in state.warnings)
    said |= {(figures.GAP, libraries.remedy("matplotlib")): None} if figures.GAP else {}
    said |= dict.fromkeys((m.verdict, "") for m in state.meters if m.verdict)
    said |= dict.fromkeys((problem, "") for problem in (state.photos.problems if state.photos else ()))
    return section(
        "Warnings",
        *(
            f'<div class="warning"><p>{escape(text)}</p>'
            + (f'<p class="muted">{escape(fix)}</p>' if fix else "")
            + "</div>"
            for text, fix in said
        ),
    )


def said(state: RunState, run: Path) -> str:
    """What libraries wrote, logged or warned of under the dashboard."""
    texts = [said.text for said in state.said]
    more = f"\n... and {len(texts) - SAID} more in log.jsonl" if len(texts) > SAID else ""
    return section("Said by libraries", f"<pre>{escape(chr(10).join(texts[:SAID]) + more)}</pre>") if texts else ""


def samples(state: RunState, run: Path) -> str:
    """Steps from left to right, one row for each prompt and seed, so that a row shows one picture as it is learned."""
    if not state.samples:
        return ""
    columns = sorted(state.samples, key=lambda s: s.step)
    columns = [columns[i] for i in spread(len(columns), STEPS)]
    cells = {
        (s.step, prompt, seed): path
        for s in columns
        for path, prompt, seed in zip(s.paths, s.prompts, s.seeds, strict=False)
    }
    rows = []
    for prompt in dict.fromkeys(prompt for _, prompt, _ in cells):
        rows.append(f'<tr><th class="prompt" colspan="{len(columns) + 1}">{escape(prompt)}</th></tr>')
        for seed in dict.fromkeys(seed for _, of, seed in cells if of == prompt):
            pictures = []
            for s in columns:
                path = cells.get((s.step, prompt, seed))
                pictures.append(
                    f"<td>{picture(locate(path, state, run), f'{prompt}, seed {seed}, step {s.step}', 300)}</td>"
                    if path
                    else "<td></td>"
                )
            rows.append(f'<tr><th class="seed">seed {seed}</th>{"".join(pictures)}</tr>')
    head = "<tr><th></th>" + "".join(f"<th>step {s.step}</th>" for s in columns) + "</tr>"
    return section("Samples", f'<div class="scroll"><table class="grid">{head}{"".join(rows)}</table></div>')


def photos(state: RunState, run: Path) -> str:
    if state.photos is None:
        return ""
    parts = [
        f"<p>{escape(state.photos.summary)}</p>",
        _strip([(locate(p, state, run), Path(p).name) for p in state.photos.photos], len(state.photos.photos)),
    ]
    left = [span for span in state.spans if span.phase == "class images"]
    named = next((span.folder for span in reversed(left) if span.folder), None) or state.setting("prior.class_data_dir")
    folder = locate(named, state, run) if named and left else None
    if folder is not None and folder.is_dir():
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        parts += ["<h3>Class images</h3>", f'<p class="muted">{escape(left[-1].detail)}</p>']
        parts.append(_strip([(p, p.name) for p in found], len(found)))
    return section("Photos", *parts)


def _strip(pictures: list[tuple[Path | None, str]], count: int) -> str:
    shown = [pictures[i] for i in spread(len(pictures), PICTURES)]
    more = f'<p class="muted">{len(shown)} of {count} shown</p>' if count > len(shown) else ""
    return (
        f'<div class="photos">{"".join(picture(path, label, 208) for path, label in shown)}</div>{more}'
        if shown
        else ""
    )


def training(state: RunState, run: Path) -> str:
    if not state.steps:
        return ""
    steps = [s.step for s in state.steps]
    small = []
    if len({s.lr for s in state.steps}) > 1:
        small.append(figures.curve("Learning rate", steps, [s.lr for s in state.steps], small=True))
    if any(not math.isnan(s.grad_norm) for s in state.steps):
        small.append(figures.curve("Gradient norm", steps, [s.grad_norm for s in state.steps], small=True))
    small.append(figures.curve("Seconds a step", steps, [s.seconds for s in state.steps], small=True))
    constant = (
        "" if len({s.lr for s in state.steps}) > 1 else f" The learning rate was {state.steps[0].lr:.3g} throughout."
    )
    note = f'<p class="muted">Faint: each step. Line: smoothed, as on the screen.{constant}</p>'
    return section("Training", note, plots(figures.losses(state).values()), plots(small, "small"))


def meters(state: RunState, run: Path) -> str:
    """A curve for each reading, a number where it was taken only once; what differs by its meaning is never mixed."""
    readings: dict[str, list[tuple[int, float]]] = {}
    for m in state.meters:
        for name, value in m.values.items():
            readings.setdefault(name, []).append((m.step, value))
    once = {name: taken[0] for name, taken in readings.items() if len(taken) == 1}
    said = "".join(_tile(number(value), f"{name}, step {step}") for name, (step, value) in once.items())
    drawn = (
        figures.curve(name.capitalize(), *zip(*taken, strict=True), small=True)
        for name, taken in readings.items()
        if len(taken) > 1
    )
    both = "subject", "unrelated drift"
    way = [
        (m.step, m.values[both[1]], m.values[both[0]]) for m in state.meters if all(name in m.values for name in both)
    ]
    path = plots([figures.path(way)]) if len(way) > 1 else ""
    return section("Meters", plots(drawn, "small"), path, f'<div class="tiles">{said}</div>' if said else "")


def memory(state: RunState, run: Path) -> str:
    parts = state.plan.parts if state.plan else {}
    plan = f"<pre>{escape(state.plan.text)}</pre>" if state.plan and state.plan.text else ""
    if not state.vram_peak_bytes:
        return section("Memory", plan)
    note = '<p class="muted">Blocks: the peak of each phase. Amber: its plan. Line: allocated at each step.</p>'
    made_of = table(
        ["the planned peak consists of", "GiB"],
        ([escape(k), f"{v / 2**30:.2f}"] for k, v in parts.items()),
        numbers=(1,),
    )
    return section(
        "Memory",
        note,
        plots([figures.memory(state)], "wide"),
        plots([figures.memory(state, (4.8, 3.2))], "narrow"),
        plan,
        made_of,
    )


def timings(state: RunState, run: Path) -> str:
    seconds = state.seconds_by_phase()
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = []
    for name, value in seconds.items():
        spans = [s for s in state.spans if s.phase == name]
        peak, planned = max(s.vram_peak_bytes for s in spans), state.plan.phases.get(name, 0) if state.plan else 0
        times = f"{len(spans)} × " if len(spans) > 1 else ""
        row = [escape(name), duration(value) if value >= 1 else f"{value:.2f}s"]
        if state.vram_peak_bytes:
            row += [f"{size / 2**30:.2f}" if size else "" for size in (peak, planned)]
        bar = f'<span class="bar" style="width:{100 * value / longest:.1f}%"></span>'
        rows.append([*row, bar, escape(times + spans[-1].detail)])
    head = ["phase", "time", *(["peak GiB", "planned"] if state.vram_peak_bytes else []), "", ""]
    return section("Phases", table(head, rows, numbers=range(1, len(head) - 2), wide=True))


def exports(state: RunState, run: Path) -> str:
    parts = []
    for e in state.exports:
        how = usage(e, state.started.model if state.started else "", title_of(state))
        parts.append(
            f"<h3>{escape(e.format)}, {escape(e.precision)}, {gib(e.size_bytes)}</h3>"
            f"<p><code>{escape(e.path)}</code></p>"
            f'<p class="muted">Loaded back and compared: largest difference {e.max_error:.2g}.</p>'
            f"<pre>{escape(how)}</pre>"
        )
    if state.finished and state.finished.text:
        parts.append(f"<h3>Next</h3><pre>{escape(state.finished.text)}</pre>")
    return section("The result", *parts)


def settings_used(state: RunState, run: Path) -> str:
    if state.started is None:
        return ""
    chosen, rest = [], []
    for name, value in settings(state.started.config):
        origin = state.started.provenance.get(name, "default")
        row = [
            f'<span class="setting">{escape(name)}</span>',
            f'<span class="setting">{escape(show(value))}</span>',
            f'<span class="muted">{escape(origin)}</span>',
        ]
        (rest if origin == "default" else chosen).append(row)
    head = ["setting", "value", "from"]
    more = (
        f"<details><summary>{len(rest)} settings at their defaults</summary>{table(head, rest)}</details>"
        if rest
        else ""
    )
    versions = " · ".join(f"{k} {v}" for k, v in state.started.versions.items())
    return section("Settings", table(head, chosen), more, f'<p class="muted">{escape(versions)}</p>')


def show(value: object) -> str:
    """A setting in a cell of a table; "-" where it was left open."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


PARTS: tuple[Callable[[RunState, Path], str], ...] = (
    heading,
    warnings,
    samples,
    exports,
    photos,
    training,
    meters,
    memory,
    timings,
    said,
    settings_used,
)
