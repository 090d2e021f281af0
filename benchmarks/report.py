"""Rows to plots, a summary and the README's tables. Numbers in the README are only ever written by this command.

    python -m benchmarks report [--out FOLDER] [--no-readme]

Of each suite and model the newest run is shown: on a card before on a CPU, of a real-size model before a tiny one. Every
table says which hardware, versions and commit it came from. Times of tiny models say nothing and are left out. README
sections stand between `<!-- bench:SUITE:begin -->` and `<!-- bench:SUITE:end -->`; `<!-- bench:SUITE column=value:begin -->`
shows the rows that have this value in this column.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from .harness.rows import RESULTS, shown
from .plots import PLOTS, Row, provenance, sheets_of_search
from .suites.search import summary

README = Path(__file__).resolve().parent.parent / "README.md"

TIMES = (
    "seconds", "spread", "images_per_second", "speed_against_above", "start_to_finish_seconds", "microseconds",
    "gb_per_second", "of_copy", "roofline_seconds", "achieved", "share", "simulation_seconds",
)  # fmt: skip

# the README's tables: columns and their headings
COLUMNS: dict[str, dict[str, str]] = {
    "quality": {
        "subject": "subject",
        "way": "trained",
        "fidelity": "fidelity",
        "prompt": "prompt",
        "context": "context",
        "class_kept": "class kept",
        "pres": "PRES",
        "div": "DIV",
        "class_drift": "class drift",
        "unrelated_drift": "unrelated drift",
        "seconds": "seconds",
        "prior_seconds": "of them for the class",
        "prior_bytes": "class on disk MiB",
    },
    "search": {
        "way": "trained",
        "subjects": "subjects",
        "runs": "runs",
        "distance": "distance to the goal",
        "fidelity": "fidelity",
        "class_kept": "class kept",
        "unrelated_drift": "unrelated drift",
        "unrelated_drift_text_restored": "the same with the base model's text encoder",
        "prompt": "prompt",
        "context": "context",
        "class_drift": "class drift",
        "seconds": "seconds",
    },
    "formats": {
        "format": "stored as",
        "rate": "rate",
        "instance_loss": "loss of the photos",
        "class_loss": "loss of the class",
        "update_error": "error of the update",
        "update_kept": "kept",
        "fidelity": "fidelity",
        "class_kept": "class kept",
        "class_drift": "class drift",
    },
    "fidelity": {
        "what": "stored as",
        "gradients": "gradients",
        "bytes_per_weight": "bytes a weight",
        "lr": "lr",
        "error": "error of the update",
        "kept": "kept",
    },
    "host": {
        "what": "stored as",
        "bytes_per_weight": "bytes in RAM",
        "nanoseconds_each_core": "ns a weight and core",
        "nanoseconds_in_ram": "ns with 8 cores",
        "nanoseconds_of_the_trip": "ns of the trip",
        "faster_than_the_trip": "faster than the trip",
    },
    "ladder": {
        "model": "model",
        "technique": "technique",
        "live_peak_bytes": "live peak MiB",
        "peak_allocated_bytes": "peak allocated MiB",
        "images_per_second": "images/s",
        "bytes_against_above": "bytes against above",
        "speed_against_above": "speed against above",
        "loss": "loss",
        "failed": "failed",
    },
    "presets": {
        "preset": "preset",
        "model": "model",
        "budget_bytes": "budget MiB",
        "peak_bytes": "whole process MiB",
        "over_budget_bytes": "beyond the budget MiB",
        "planned_bytes": "planned MiB",
        "images_per_second": "images/s",
        "failed": "failed",
    },
    "compatibility": {
        "program": "program",
        "what": "what",
        "outcome": "here",
        "tests": "tests",
        "failed": "failed",
    },
    "peers": {
        "trainer": "trainer",
        "model": "model",
        "seconds": "seconds",
        "images_per_second": "images/s",
        "speed_against_above": "speed against above",
        "peak_bytes": "peak MiB",
        "start_to_finish_seconds": "start to finish s",
        "failed": "failed",
    },
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of *.jsonl rows")
    parser.add_argument("--out", type=Path, help="folder for summary.md and plots; default the results folder")
    parser.add_argument("--no-readme", action="store_true", help="leave README.md alone")
    given = parser.parse_args(argv)
    out = given.out or given.results
    out.mkdir(parents=True, exist_ok=True)
    newest = {path.stem: shown_rows(path) for path in sorted(given.results.glob("*.jsonl"))}
    newest = {suite: rows for suite, rows in newest.items() if rows}
    summary = ["# Results", *(f"\n## {suite}\n\n{section(suite, rows)}" for suite, rows in newest.items())]
    (out / "summary.md").write_text("\n".join(summary) + "\n", encoding="utf-8")
    drawn = [
        str(plot(rows, out / f"{suite}.png"))
        for suite, plot in PLOTS.items()
        if (rows := [row for row in newest.get(suite, ()) if "failed" not in row])
    ]
    drawn += [str(path) for path in sheets_of_search(newest.get("search", []), out)]
    changed = [] if given.no_readme or not README.exists() else fill_readme(README, newest)
    print(json.dumps({"suites": list(newest), "plots": drawn, "readme": changed, "summary": str(out / "summary.md")}))
    return 0


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def latest(rows: list[Row]) -> list[Row]:
    """The rows of the newest run of each model (and way to train, and format); a run is one origin. What ran on a card or
    with a real-size model makes every row that did not step back."""
    if not rows:
        return []
    best = max(map(_worth, rows))
    rows = [row for row in rows if _worth(row) == best]
    newest: dict[object, str] = {}
    for row in rows:
        newest[_subject(row)] = max(row["origin"]["time"], newest.get(_subject(row), ""))
    return [row for row in rows if row["origin"]["time"] == newest[_subject(row)]]


def shown_rows(path: Path) -> list[Row]:
    """The rows of a suite that are shown: the newest run's; of a search all, which go on from each other."""
    return read(path) if path.stem == "search" else latest(read(path))


def _subject(row: Row) -> tuple[object, ...]:
    return row.get("model"), row.get("subject"), row.get("way"), row.get("rate"), row.get("format")


def _worth(row: Row) -> tuple[bool, bool]:
    return bool(row["origin"]["gpu"]), not row.get("tiny")


def section(suite: str, rows: list[Row]) -> str:
    """A Markdown table for each run, and the sentence that says where it was measured."""
    if suite == "search":
        return _table(suite, [row | {"origin": rows[-1]["origin"]} for row in summary(rows)])
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["origin"]["time"], []).append(row)
    return "\n\n".join(_table(suite, run) for run in runs.values())


def _table(suite: str, rows: list[Row]) -> str:
    named = COLUMNS.get(suite) or {
        name: name.removesuffix("_bytes").replace("_", " ") + (" MiB" if name.endswith("_bytes") else "")
        for row in rows
        for name in row
        if name not in ("suite", "origin")
    }
    without = TIMES if any(row.get("tiny") for row in rows) else ()
    columns = {
        name: heading
        for name, heading in named.items()
        if name not in without and any(row.get(name) not in (None, "", 0) for row in rows)
    }
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(name, row) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + provenance(rows[0])


def cell(name: str, row: Row) -> str:
    """A value, with its spread over seeds behind it where there is one."""
    value = row.get(name)
    text = shown(name, round(value, 3) if isinstance(value, float) and 0.1 <= abs(value) < 100 else value)
    spread = (
        None if name.endswith("_bytes") else row.get(f"{name}_sd", row.get(f"{name}_ci"))
    )  # MiB here, bytes in the row
    text = f"{text} ± {spread:.2g}" if isinstance(spread, float) and spread else text
    return text.replace("|", "\\|")


def fill_readme(readme: Path, newest: dict[str, list[Row]]) -> list[str]:
    """Replace each marked section whose suite has rows; the names of those that changed."""
    text, changed = readme.read_text(encoding="utf-8"), []
    for suite, rows in newest.items():
        pattern = re.compile(
            rf"(<!-- bench:{suite}(?: (\w+)=(\S+))?:begin -->\n).*?(<!-- bench:{suite}:end -->)", re.DOTALL
        )

        def filled(match: re.Match, suite: str = suite, rows: list[Row] = rows) -> str:
            wanted = [row for row in rows if not match[2] or str(row.get(match[2])) == match[3]]
            return f"{match[1]}{section(suite, wanted)}\n{match[4]}"

        after = pattern.sub(filled, text)
        if after != text:
            text = after
            changed.append(suite)
    readme.write_text(text, encoding="utf-8")
    return changed
