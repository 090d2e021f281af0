"""The pieces of the dashboard: each turns the state of a run into a few lines of a given width."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from trainer.readers.view.charts import bar, braille, limits, sparkline
from trainer.readers.view.ink import beside, ends, ink, pad, row
from trainer.readers.view.lines import duration, gib, number
from trainer.readers.view.pictures import gallery
from trainer.readers.view.state import RunState

INSTANCE, CLASS, ACCENT, LABEL, WARN, GOOD = "cyan", "magenta", "cyan", "bright_black", "yellow", "green"
SIGNS = {
    "done": ("✓", GOOD),
    "now": ("▸", "bold " + ACCENT),
    "held": ("▹", ACCENT),
    "next": ("·", LABEL),
    "skipped": ("–", LABEL),
}
SHORT = {"class images": "class", "cache images": "cache", "cache text": "text"}
HELP = (
    ("s", "sample now", "draw the sample pictures after this step"),
    ("c", "checkpoint now", "save everything needed to go on from here"),
    ("p", "pause", "wait after this step; p again goes on"),
    ("v", "pictures", "show the last samples as large as the screen allows"),
    ("q", "save and quit", "as Ctrl-C does; a second Ctrl-C breaks off at once"),
    ("?", "help", "this page"),
)
WATCH_HELP = (HELP[3], ("q", "leave", "the run itself goes on"), HELP[5])


@dataclass(frozen=True)
class View:
    """What the screen knows beside the run itself."""

    now: float = math.nan  # the clock; nan = the time of the last event
    pictures: bool = True  # the terminal has true colour
    watching: bool = False  # another process runs it
    help: bool = False
    large: bool = False  # pictures fill the screen
    asked: tuple[str, ...] = ()  # "sample", "checkpoint", "pause", "quit": asked for and not yet done


def header(state: RunState, width: int, view: View) -> Text:
    now = state.time if math.isnan(view.now) or state.finished else view.now
    left = ink(_subject(state), "bold")
    if state.started:
        left.append(f"  {Path(state.started.model).name} · {state.started.device}", LABEL)
    if state.finished:
        sign, style = {"done": ("✓ done", GOOD), "interrupted": ("■ interrupted", WARN)}.get(
            state.finished.status, ("✗ failed", "red")
        )
        right = ink(sign, "bold " + style)
    elif view.watching and now - state.time > 120:
        right = ink(f"no news for {duration(now - state.time)}", WARN)
    elif "quit" in view.asked:
        right = ink("saving, then leaving", WARN)
    elif "pause" in view.asked:
        right = ink("‖ paused", "bold " + WARN)
    else:
        right = Text()
    right.append(f"  {duration(state.clock(now))}", "default")
    return ends(left, right, width)


def phase_strip(state: RunState, width: int) -> Text:
    text = Text()
    statuses = state.phase_status()
    short = sum(len(name) + 4 for name in statuses) - 2 > width
    for name, status in statuses.items():
        sign, style = SIGNS[status]
        text.append(("  " if text else "") + f"{sign} ", style)
        text.append(
            SHORT.get(name, name) if short else name,
            style if status in ("now", "held") else LABEL if status in ("next", "skipped") else "default",
        )
    return text


def progress(state: RunState, width: int) -> list[Text]:
    """What is being done: title and time left, a bar, the numbers of the moment."""
    span = state.span
    if span is None:
        said = state.finished.text.strip().splitlines() if state.finished else ["starting"]
        first, second = [*said, "", ""][:2]
        return [ink(first), ink(second, LABEL), speed(state)]
    title = ink(span.phase, "bold")
    if span.total:
        title.append(f"  {span.done} of {span.total}")
    if span.detail:
        title.append(f"  {span.detail}", LABEL)
    left = state.seconds_left
    right = ink("" if math.isnan(left) else f"{duration(left)} left")
    share = span.done / span.total if span.total else 0.0
    line = bar(width - 6, 1.0, [(share, "bold " + ACCENT)], rest="bright_black")
    line.append(f"{share:5.0%} " if span.total else "    ‥ ", "default")
    return [ends(title, right, width), line, speed(state)]


def speed(state: RunState) -> Text:
    step = state.step
    if step is None:
        return ink(state.photos.summary if state.photos else "", LABEL)
    rate = 1 / state.step_seconds if state.step_seconds > 0 else math.nan
    pairs = [
        (f"{rate:.2f}" if rate >= 1 else f"{state.step_seconds:.2f}", "steps/s" if rate >= 1 else "s/step"),
        (f"{state.images_per_second:.2f}", "images/s"),
        (f"{step.lr:.2e}", "lr"),
    ]
    if not math.isnan(step.grad_norm):
        pairs.append((number(step.grad_norm), "gradient norm"))
    text = Text()
    for value, label in pairs:
        text.append(("   " if text else "") + value)
        text.append(f" {label}", LABEL)
    return text


def _curve(values: Sequence[float], name: str, style: str, width: int, height: int) -> list[Text]:
    """A heading with the last value, and below it the curve with its range at the left."""
    title = ink(f"{name} ", style)
    title.append(number(values[-1]) if values else "-", "bold")
    title.append("  smoothed", LABEL)
    low, high = limits(values[len(values) // 20 :])  # the first means are of few steps and would set the range of all
    rows = braille(values, width - 8, max(1, height - 1), low, high)
    lines = [title]
    for i, dots in enumerate(rows):
        label = f"{high:.4f}" if i == 0 else f"{low:.4f}" if i == len(rows) - 1 else ""
        line = ink(f"{label:>6} ", LABEL)
        line.append(dots, style)
        lines.append(line)
    return lines


def curves_beside(state: RunState, width: int, height: int, view: View) -> list[Text]:
    if not state.steps:
        plan = _plan(state, width)
        room = height - len(plan) - 1
        photos = (
            gallery(tuple(state.photos.photos[:12]), width, room)
            if state.photos and view.pictures and room >= 5
            else ()
        )
        return pad([*plan, Text(), *photos], height)
    if not state.has_prior:
        return pad(_curve([s.instance for s in state.smooth], "instance loss", INSTANCE, width, height), height)
    half = (width - 4) // 2
    left = _curve([s.instance for s in state.smooth], "instance loss", INSTANCE, half, height)
    right = _curve([s.cls for s in state.smooth], "class loss", CLASS, half, height)
    return beside(left, right, half, 4, height)


def curves_stacked(state: RunState, width: int, height: int) -> list[Text]:
    if not state.steps:
        return pad(_plan(state, width), height)
    curves = [([s.instance for s in state.smooth], "instance loss", INSTANCE)]
    if state.has_prior:
        curves.append(([s.cls for s in state.smooth], "class loss", CLASS))
    each = (height - len(curves) + 1) // len(curves)
    lines: list[Text] = []
    for values, name, style in curves:
        lines += ([Text()] if lines else []) + _curve(values, name, style, width, each)
    return pad(lines, height)


def _plan(state: RunState, width: int) -> list[Text]:
    """Before the first step the curves' place belongs to the plan."""
    lines = [ink("plan", "bold")] if state.plan else []
    for paragraph in state.plan.text.splitlines() if state.plan else []:
        lines += [ink(line, LABEL) for line in textwrap.wrap(paragraph, width)]
    return lines


def memory(state: RunState, width: int) -> list[Text]:
    """VRAM as a bar against plan and budget; on a CPU the host's RAM alone."""
    step = state.step
    span = state.span
    now = (
        step.vram_bytes if step and span and span.phase == "train" else 0
    )  # only steps say what is allocated at the moment
    peak, plan = state.vram_peak_bytes, state.planned_bytes
    budget = state.plan.budget_bytes if state.plan else 0
    load = Text()
    if step and not math.isnan(step.gpu_load):
        load.append(f"GPU {step.gpu_load:.0%}  ")
    if step and not math.isnan(step.gpu_celsius):
        load.append(f"{step.gpu_celsius:.0f} °C  ", "red" if step.gpu_celsius >= 84 else "default")
    ram = step.ram_bytes if step else max((s.ram_bytes for s in state.spans), default=0)
    load.append(f"RAM {gib(ram)}" if ram else "", "default")
    if not peak and not (plan and budget):
        return [ends(ink("no GPU in use", LABEL), load, width)]
    end = max(budget, peak, plan)
    over = bool(budget) and peak > budget
    line = ink("VRAM ", LABEL)
    phase_plan = state.plan.phases.get(span.phase, plan) if state.plan and span else plan
    fills = [(now, "green"), (peak, "red" if over else "dark_green")]
    line.append_text(bar(width - 5, end, fills, [(phase_plan, "bold yellow")], "bright_black"))
    text = ink("GiB  ", LABEL)
    for size, name, style in (
        (now, "now", "green"),
        (peak, "peak", "red" if over else "default"),
        (phase_plan, "planned", "yellow"),
        (budget, "budget", "default"),
    ):
        if size:
            text.append(f"{size / 2**30:.1f}", style).append(f" {name}  ", LABEL)
    text.rstrip()
    return [line, ends(text, load, width)]


def saved(state: RunState, width: int) -> list[Text]:
    """The last checkpoint, the last pictures and the exports, one line each."""
    lines = []
    if state.checkpoints:
        last = state.checkpoints[-1]
        lines.append(row("checkpoint", f"step {last.step} · {gib(last.size_bytes)} · {_short(last.path, state)}"))
    if state.samples:
        sample = state.samples[-1]
        where = sample.sheet or (sample.paths[0] if sample.paths else "")
        lines.append(row("samples", f"step {sample.step} · {len(sample.paths)} pictures · {_short(where, state)}"))
    if state.exports:
        lines.append(row("exports", " · ".join(f"{e.format} {e.precision} {gib(e.size_bytes)}" for e in state.exports)))
    return lines


def meter_line(state: RunState, width: int) -> list[Text]:
    if not state.meters:
        return []
    text = ink("meters      ", LABEL)
    for name, value in state.meters[-1].values.items():
        text.append(f"{name} ", LABEL).append(f"{value:.3f}  ")
    return [text]


def meter_table(state: RunState, width: int) -> list[Text]:
    if not state.meters:
        return []
    lines = [ink("meters", "bold")]
    for name, value in state.meters[-1].values.items():
        history = [m.values.get(name, math.nan) for m in state.meters]
        line = ink(f"{name[:22]:<22} {value:>7.3f}  ")
        line.append(sparkline(history, max(4, width - 36)), ACCENT)
        lines.append(line)
    if state.meters[-1].verdict:
        lines.append(ink(state.meters[-1].verdict, WARN))
    return [*lines, Text()]


def phase_table(state: RunState, width: int) -> list[Text]:
    """Each phase with its time, its peak against the plan, and what it said at its end."""
    lines = []
    seconds = state.seconds_by_phase()
    for name, status in state.phase_status().items():
        sign, style = SIGNS[status]
        spans = [s for s in state.spans if s.phase == name]
        clock = seconds.get(name, 0.0)
        line = ink(f"{sign} ", style)
        line.append(f"{name:<13}", "bold" if status == "now" else "default" if status in ("done", "held") else LABEL)
        line.append(f"{duration(clock) if clock else '':>7} ")
        peak = max((s.vram_peak_bytes for s in spans), default=0)
        if name == "train" and state.step:
            peak = max(peak, state.step.vram_peak_bytes)
        planned = state.plan.phases.get(name, 0) if state.plan else 0
        line.append(
            f"{f'{peak / 2**30:.1f}' if peak else '':>5}", "red" if planned and peak > planned * 1.05 else "default"
        )
        line.append(f" of {planned / 2**30:.1f} GiB  " if planned else " GiB  " if peak else "  ", LABEL)
        line.append(spans[-1].detail if spans and status == "done" else "", LABEL)
        lines.append(line)
    return lines


def last_pictures(state: RunState, width: int, rows: int, view: View) -> list[Text]:
    """The newest samples; before there are any, the photos that are to be learned."""
    paths = state.samples[-1].paths if state.samples else state.photos.photos[:12] if state.photos else []
    return list(gallery(tuple(paths), width, rows)) if view.pictures and rows >= 4 else []


def notices(state: RunState, width: int, most: int) -> list[Text]:
    """The newest warnings with their fixes, in about `most` lines; how many more there are."""
    lines: list[Text] = []
    for shown, notice in enumerate(reversed(state.warnings)):
        folded = textwrap.wrap(notice.text, width - 2)
        block = [ink("! " if i == 0 else "  ", "bold " + WARN).append(line, WARN) for i, line in enumerate(folded)]
        block += [ink("  ").append(line, LABEL) for line in textwrap.wrap(notice.fix, width - 2)]
        if len(lines) + len(block) > most and shown:
            lines.insert(0, ink(f"  {len(state.warnings) - shown} earlier warnings are in log.jsonl", LABEL))
            break
        lines = block[:most] + lines
    return lines


def footer(state: RunState, width: int, view: View) -> Text:
    left = Text()
    for key, name, _ in WATCH_HELP if view.watching else HELP:
        asked = name.split()[0] in view.asked
        left.append(("  " if left else "") + key, "bold " + (WARN if asked else ACCENT)).append(
            f" {name}", WARN if asked else LABEL
        )
    info = [n.text for n in state.notices if n.level != "warning"]
    said = ink(info[-1] if info else "", LABEL)
    room = width - left.cell_len - 2
    said.truncate(max(1, room), overflow="ellipsis")
    return ends(left, said if room > 10 else Text(), width)


def _subject(state: RunState) -> str:
    name = f"{state.setting('data.identifier', '')} {state.setting('data.class_name', '')}".strip()
    return state.setting("data.instance_prompt", "") or name or "trainer"


def _short(path: str, state: RunState) -> str:
    run = state.started.run_dir if state.started else ""
    return f"…{path[len(run) :]}" if run and path.startswith(run) else path
