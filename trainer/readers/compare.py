"""`python -m trainer compare RUN RUN...`: what was set differently, and what became of it.

Settings that differ and the numbers at the end go to the terminal; curves and the last samples, side by side, to a
page. Of a run its log is read, and the pictures that this names, so a running one can be compared with a finished one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.errors import ConfigError
from trainer.files.whole import whole
from trainer.readers import log
from trainer.readers.report import show
from trainer.readers.view import figures
from trainer.readers.view.lines import duration, gib, number
from trainer.readers.view.page import locate, page, picture, plots, section, spread, table
from trainer.readers.view.state import RunState, replay, settings

NAME = "compare.html"
OWN = ("run.output_dir", "run.logging_dir")  # differ between any two runs and explain nothing


def main(runs: list[Path], output: Path | None = None) -> int:
    """Print the comparison and write the page: in the folder that holds the runs (or as `output`)."""
    if len(runs) < 2:
        raise ConfigError("a comparison needs two runs or more", "name their folders: compare runs/a runs/b")
    runs = [Path(run) for run in runs]
    states = {name: replay(log.read(run)) for name, run in zip(names(runs), runs, strict=True)}
    console = Console(width=None if os.environ.get("COLUMNS") or os.isatty(1) else 140)
    for title, rows in (
        ("settings that differ", differences(list(states.values()))),
        ("what became of it", outcomes(list(states.values()))),
    ):
        console.print(_terminal(title, list(states), rows))
    path = output or _shared_folder(runs) / NAME
    with whole(path) as part:
        part.write_text(render(states, runs), encoding="utf-8")
    print(path)
    return 0


def _shared_folder(runs: Sequence[Path]) -> Path:
    """The folder that holds all runs; that of the first one where they share nothing but the root."""
    folders = [run.resolve().parent for run in runs]
    shared = [parent for parent in (folders[0], *folders[0].parents) if all(f.is_relative_to(parent) for f in folders)]
    return shared[0] if shared and shared[0] != Path(shared[0].anchor) else folders[0]


def names(runs: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart: the folder's, with its parents' where two are alike."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-depth:]) for p in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{run} ({i + 1})" for i, run in enumerate(runs)]  # the same run twice


def differences(states: Sequence[RunState]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) where they are not all equal."""
    each = [
        dict(settings(s.started.config)) | {"model": s.started.model, "device": s.started.device} if s.started else {}
        for s in states
    ]
    rows = []
    for name in dict.fromkeys(name for values in each for name in values):
        shown = [show(values.get(name)) for values in each]
        if len(set(shown)) > 1 and name not in OWN:
            rows.append((name, shown))
    return rows


def outcomes(states: Sequence[RunState]) -> list[tuple[str, list[str]]]:
    """(reading, its value in each run) at the end of each."""
    rows = [
        ("status", [s.finished.status if s.finished else "not finished" for s in states]),
        ("steps", [str(s.step.step) if s.step else "-" for s in states]),
        ("time", [duration(s.clock(s.time)) for s in states]),
        ("steps a second", [number(1 / s.step_seconds) if s.step_seconds > 0 else "-" for s in states]),
        ("instance loss", [number(s.smooth[-1].instance) if s.smooth else "-" for s in states]),
        ("class loss", [number(s.smooth[-1].cls) if s.smooth else "-" for s in states]),
        ("VRAM peak", [gib(s.vram_peak_bytes) if s.vram_peak_bytes else "-" for s in states]),
    ]
    for name in dict.fromkeys(name for s in states for m in s.meters for name in m.values):
        rows.append((name, [number(s.meters[-1].values.get(name, math.nan)) if s.meters else "-" for s in states]))
    return [(name, values) for name, values in rows if set(values) != {"-"}]


def render(states: dict[str, RunState], runs: Sequence[Path]) -> str:
    """The page: tables, curves over each other, the last samples beside each other."""
    head = [
        "",
        *(
            f'<span class="key"><i style="background:var(--run{i % 6})"></i>{escape(name)}</span>'
            for i, name in enumerate(states)
        ),
    ]
    return page(
        "Comparison",
        [
            f"<h1>Comparison of {len(states)} runs</h1>",
            section("Settings that differ", _html(head, differences(list(states.values()))) or "<p>None.</p>"),
            section("What became of it", _html(head, outcomes(list(states.values())))),
            section("Curves", f"<p>{figures.legend(states)}</p>", plots(_curves(states))),
            section("Samples", _samples(states, runs)),
        ],
    )


def _curves(states: dict[str, RunState]) -> list[str]:
    shown = {
        "Instance loss": {n: ([x.step for x in s.steps], [x.instance for x in s.smooth]) for n, s in states.items()},
        "Class loss": {
            n: ([x.step for x in s.steps], [x.cls for x in s.smooth] if s.has_prior else []) for n, s in states.items()
        },
    }
    for meter in dict.fromkeys(name for s in states.values() for m in s.meters for name in m.values):
        shown[meter.capitalize()] = {
            n: ([m.step for m in s.meters], [m.values.get(meter, math.nan) for m in s.meters])
            for n, s in states.items()
        }
    return [
        figures.curves(title, {n: (x if y else [], y) for n, (x, y) in lines.items()})
        for title, lines in shown.items()
        if any(y for _, y in lines.values())
    ]


def _samples(states: dict[str, RunState], runs: Sequence[Path]) -> str:
    """The last samples: one column for each run, one row for each prompt and seed."""
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for (name, state), run in zip(states.items(), runs, strict=True):
        last = max(state.samples, key=lambda s: s.step, default=None)
        for path, prompt, seed in zip(last.paths, last.prompts, last.seeds, strict=False) if last else ():
            cells.setdefault((prompt, seed), {})[name] = picture(
                locate(path, state, run), f"{name}: {prompt}, seed {seed}, step {last.step}", 300
            )
    if not cells:
        return ""
    steps = {
        name: f"{escape(name)}<br>step {max(s.step for s in state.samples)}" if state.samples else escape(name)
        for name, state in states.items()
    }
    rows = ["<tr><th></th>" + "".join(f"<th>{steps[name]}</th>" for name in states) + "</tr>"]
    keys = list(cells)
    for prompt, seed in (keys[i] for i in spread(len(keys), 24)):
        rows.append(
            f'<tr><th class="prompt" colspan="{len(states) + 1}">{escape(prompt)}, seed {seed}</th></tr><tr><th></th>'
            + "".join(f"<td>{cells[prompt, seed].get(name, '')}</td>" for name in states)
            + "</tr>"
        )
    return f'<div class="scroll"><table class="grid">{"".join(rows)}</table></div>'


def _html(head: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> str:
    return table(
        head, ([f'<span class="setting">{escape(name)}</span>', *map(escape, values)] for name, values in rows)
    )


def _terminal(title: str, columns: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="cyan")
    for name in ("", *columns):
        grid.add_column(name, overflow="fold")
    for name, values in rows or [("none", [])]:
        grid.add_row(name, *values)
    return grid
