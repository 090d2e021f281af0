"""Pictures of rows: peak memory by technique and preset, fidelity against drift by way to train. Each says where its rows came
from."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trainer.draw.preview import slug
from trainer.draw.sheet import contact_sheet

from .suites.search import BASE, GOALS, STRIPS, front, summary

Row = dict[str, object]
SHOWN = "twice alone, on four contexts' backgrounds, the class twice, a car, a tree, a house"


def plot_ladder(rows: list[Row], path: Path) -> Path:
    """Peak memory as bars with the speed written on them, one technique more per bar."""
    rows = [row for row in rows if row.get("model") == rows[0].get("model")]  # of several models the first one measured
    figure, axis = _figure(9, 0.45 * len(rows) + 1.6)
    key = "peak_allocated_bytes" if any(row.get("peak_allocated_bytes") for row in rows) else "live_peak_bytes"
    rows = [row for row in rows if key in row]
    names, sizes = [row["technique"] for row in rows], [row[key] / 2**20 for row in rows]
    axis.barh(names, sizes, color="#4c78a8")
    axis.invert_yaxis()
    axis.set_xlabel("peak of allocated tensors, MiB")
    for index, row in enumerate(rows):
        said = f" {sizes[index]:,.1f} MiB" + ("" if row.get("tiny") else f", {row['images_per_second']:.3g} images/s")
        axis.text(sizes[index], index, said, va="center", fontsize=8)
    axis.set_xlim(0, max(sizes) * 1.45)
    return _save(figure, rows, path)


def plot_presets(rows: list[Row], path: Path) -> Path:
    rows = [row for row in rows if row.get("budget_bytes")] or rows
    figure, axis = _figure(7, 0.5 * len(rows) + 1.6)
    names = [f"{row['preset']} {row['model']}" for row in rows]
    axis.barh(names, [row.get("budget_bytes", 0) / 2**20 for row in rows], color="#dddddd", label="budget")
    axis.barh(names, [row["peak_bytes"] / 2**20 for row in rows], color="#4c78a8", height=0.5, label="peak")
    axis.invert_yaxis()
    axis.set_xlabel("MiB")
    axis.legend()
    return _save(figure, rows, path)


def plot_quality(rows: list[Row], path: Path) -> Path:
    """Fidelity against drift: a good way to train is high and to the left."""
    figure, axis = _figure(7, 5)
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        axis.errorbar(
            [r["class_drift"] for r in mine],
            [r["fidelity"] for r in mine],
            xerr=[r.get("class_drift_sd", 0) for r in mine],
            yerr=[r.get("fidelity_sd", 0) for r in mine],
            fmt="o",
            label=way,
            capsize=2,
        )
    axis.set_xlabel("drift of the bare class from the base model (less is better)")
    axis.set_ylabel("subject fidelity (more is better)")
    axis.legend(fontsize=8)
    return _save(figure, rows, path)


def plot_search(rows: list[Row], path: Path) -> Path:
    """Fidelity against unrelated drift, one point a way and larger for more runs; the front of the ways with most runs, and
    the goal's corner."""
    ways = summary(rows)
    figure, axis = _figure(9, 6)
    best = front(ways)
    axis.plot([r["unrelated_drift"] for r in best], [r["fidelity"] for r in best], color="#bbbbbb", zorder=0)
    for number, row in enumerate(ways, 1):
        axis.errorbar(
            row["unrelated_drift"],
            row["fidelity"],
            xerr=row.get("unrelated_drift_ci"),
            yerr=row.get("fidelity_ci"),
            fmt="o",
            markersize=4 + 2 * row["runs"] ** 0.5,
            capsize=2,
            label=f"{number}  {row['way']} ({row['runs']} runs)",
        )
        axis.annotate(str(number), (row["unrelated_drift"], row["fidelity"]), xytext=(5, 5), textcoords="offset points")
    axis.axvspan(0, GOALS["unrelated_drift"], ymin=0, ymax=1, alpha=0.06, color="green")
    axis.axhline(GOALS["fidelity"], color="green", linewidth=0.8, linestyle=":")
    axis.set_xlim(left=0)
    seen = [row["fidelity"] for row in ways]
    axis.set_ylim(min(seen) - 0.1, max(seen) + 0.1)  # an interval of two runs is wider than everything there is
    axis.set_xlabel("drift of unrelated prompts from the base model (less is better)")
    axis.set_ylabel("subject fidelity (more is better)")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, rows, path)


def sheets_of_search(rows: list[Row], folder: Path) -> list[Path]:
    """For each subject the strips of its ways below one another, the nearest to the goal first."""
    written = []
    order = [BASE, *(row["way"] for row in summary(rows) if row["way"] != BASE)]
    for subject in dict.fromkeys(row["subject"] for row in rows):
        known = {way: STRIPS / f"{subject}.{slug(way, 60)}.webp" for way in order}
        strips = {way: Image.open(path) for way, path in known.items() if path.is_file()}
        cells, words = [], []
        for number, strip in enumerate(strips.values(), 1):
            side = strip.height
            cells += [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)]
            words += [str(number), *[""] * (strip.width // side - 1)]
        if cells:
            path, columns = folder / f"search-{subject}.png", len(cells) // len(strips)
            foot = [f"{number}  {way}" for number, way in enumerate(strips, 1)]
            contact_sheet(cells, words, path, columns=columns, side=96, title=f"{subject}: {SHOWN}", foot=foot)
            written.append(path)
    return written


PLOTS: dict[str, Callable[[list[Row], Path], Path]] = {
    "ladder": plot_ladder,
    "presets": plot_presets,
    "quality": plot_quality,
    "search": plot_search,
}


def _figure(width: float, height: float):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _save(figure, rows: list[Row], path: Path) -> Path:
    said = textwrap.fill(provenance(rows[0]), int(figure.get_figwidth() * 14))
    figure.suptitle(said, fontsize=7, x=0.01, ha="left", color="#666666")
    figure.savefig(path, dpi=130)
    return path


def provenance(row: Row) -> str:
    origin = row["origin"]
    where = f"{origin['gpu']['name']}" if origin["gpu"] else f"{origin['cpu']}, {origin['threads']} threads, no GPU"
    versions = ", ".join(
        f"{name} {origin['versions'][name]}" for name in ("torch", "diffusers") if name in origin["versions"]
    )
    where = f"a tiny {row.get('model', '')} model on {where}".replace("  ", " ") if row.get("tiny") else where
    return f"Measured on {where}; {versions}; commit {origin['commit'] or 'unknown'}, {origin['time'][:10]}."
