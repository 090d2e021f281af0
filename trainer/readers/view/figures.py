"""Plots for the HTML pages: matplotlib figures as inline SVG that follows the page's colours, light or dark.

A figure is drawn in placeholder colours which stand for the page's CSS variables (`--ink`, `--instance` ...) and are
exchanged in the finished SVG; text stays text, in the page's own font. Figures are made without pyplot, so nothing
global is touched. Where matplotlib does not load every figure is "", and the page says so: a run never ends over its report.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from html import escape

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except (ImportError, OSError, AttributeError, RuntimeError) as missing:  # absent, or one of its libraries does not fit
    GAP = f"There are no plots: matplotlib does not load ({missing})."
else:
    GAP = ""

from trainer.readers.view.state import RunState

# Placeholder -> CSS variable. Nearly equal blacks, so that no plot can hold one of them by chance.
NAMES = ("ink", "muted", "grid", "instance", "class", "plan", "good", "run0", "run1", "run2", "run3", "run4", "run5")
COLOURS = {name: f"#0000{i + 1:02x}" for i, name in enumerate(NAMES)}
POINTS = 700  # a curve is thinned to so many; more cannot be told apart on a page
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.5,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "path.simplify": True,
}


def losses(state: RunState) -> dict[str, str]:
    """Title -> SVG: the raw losses faint behind their smoothed course, instance and class apart on the same scale."""
    shown = {"Instance loss": ("instance", [s.instance_loss for s in state.steps], [s.instance for s in state.smooth])}
    if state.has_prior:
        shown["Class loss"] = ("class", [s.class_loss for s in state.steps], [s.cls for s in state.smooth])
    known = sorted(v for _, raw, _ in shown.values() for v in raw if math.isfinite(v))
    if GAP or not known:
        return {}
    top = known[min(len(known) - 1, int(len(known) * 0.99))] * 1.08  # a few outliers must not flatten the rest
    steps = [s.step for s in state.steps]
    plots = {}
    for title, (colour, raw, smooth) in shown.items():
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure(title)
            axes.plot(*thin(steps, raw), color=COLOURS[colour], alpha=0.28, linewidth=0.7)
            axes.plot(*thin(steps, smooth), color=COLOURS[colour], linewidth=1.8)
            axes.set_ylim(min(0.0, known[0]), top)
            axes.set_xlabel("step")
            plots[title] = svg(figure, title)
    return plots


def curve(
    title: str, x: Sequence[float], y: Sequence[float], colour: str = "ink", xlabel: str = "step", small: bool = False
) -> str:
    """One line, for a reading with a scale of its own; points are marked where there are few."""
    if GAP:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(title, (3.4, 2.0) if small else (4.8, 2.8))
        few = "o" if len(x) <= 20 else ""
        axes.plot(*thin(x, y), color=COLOURS[colour], linewidth=1.5 if few else 0.8, marker=few, markersize=3.5)
        axes.set_xlabel(xlabel)
        return svg(figure, title)


def curves(title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """The same reading of several runs; the legend stands under the plot, where long names find room."""
    if GAP:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(title)
        for i, (x, y) in enumerate(lines.values()):
            axes.plot(*thin(x, y), color=COLOURS[f"run{i % 6}"], linewidth=1.6, linestyle=("-", "--", ":")[i // 6 % 3])
        axes.set_xlabel("step")
        return svg(figure, title)


def path(points: Sequence[tuple[int, float, float]]) -> str:
    """The run's way from the base model: how far unrelated prompts moved, and how near the subject came, at each reading;
    up and to the left is better. points: (step, unrelated drift, subject)."""
    if GAP or len(points) < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("Subject against unrelated drift")
        axes.plot(
            [x for _, x, _ in points],
            [y for _, _, y in points],
            color=COLOURS["muted"],
            linewidth=1,
            marker="o",
            markersize=3,
        )
        for (step, x, y), colour in ((points[0], "muted"), (points[-1], "instance")):
            axes.plot([x], [y], marker="o", markersize=5, color=COLOURS[colour])
            axes.annotate(f"step {step}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8.5)
        axes.margins(0.14)
        axes.set_xlabel("drift of unrelated prompts")
        axes.set_ylabel("similarity to the photos", labelpad=2)
        return svg(figure, "Subject against unrelated drift")


def memory(state: RunState, inches: tuple[float, float] = (8.4, 3.2)) -> str:
    """VRAM over time: each phase as a block up to its peak, what was planned for it as a dash, the budget as a dotted
    line.
    """
    if GAP:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("VRAM by phase", inches)
        length = state.clock(state.time)
        unit, name = (60.0, "minutes") if length >= 180 else (1.0, "seconds")
        gib = 2**30
        planned = state.plan.phases if state.plan else {}
        top = max([state.vram_peak_bytes, *planned.values(), state.plan.budget_bytes if state.plan else 0]) / gib
        for span in sorted(state.spans, key=lambda s: bool(s.inside)):
            start, end = state.clock(span.start) / unit, state.clock(state.time if span.open else span.end) / unit
            train_peaks = [
                s.vram_peak_bytes
                for s in state.steps
                if span.phase == "train" and s.time >= span.start and (span.open or s.time <= span.end)
            ]
            peak = max([span.vram_peak_bytes, *train_peaks]) / gib
            colour = COLOURS[
                "instance" if span.phase == "train" else "class" if span.inside or span.phase == "sample" else "muted"
            ]
            axes.fill_between([start, end], 0, peak, color=colour, alpha=0.30, linewidth=0)
            axes.plot([start, start, end, end], [0, peak, peak, 0], color=colour, linewidth=0.8)
            if span.phase in planned:
                at = planned[span.phase] / gib
                axes.plot(
                    [start, max(end, start + length / unit * 0.004)],
                    [at, at],
                    color=COLOURS["plan"],
                    linewidth=2.2,
                    solid_capstyle="butt",
                )
            if (end - start) * unit > 0.6 / inches[0] * length and not span.inside:  # room for its name
                axes.text(
                    (start + end) / 2,
                    top * 0.03,
                    span.phase,
                    ha="center",
                    va="bottom",
                    fontsize=8.5,
                    color=COLOURS["ink"],
                    parse_math=False,
                )
        times, now = thin([state.clock(s.time) / unit for s in state.steps], [s.vram_bytes / gib for s in state.steps])
        axes.plot(times, now, color=COLOURS["instance"], linewidth=1.2)
        if state.plan and state.plan.budget_bytes:
            axes.axhline(state.plan.budget_bytes / gib, color=COLOURS["ink"], linewidth=1, linestyle=":")
            axes.text(0, state.plan.budget_bytes / gib, " budget", va="bottom", fontsize=8.5, color=COLOURS["ink"])
        axes.set_ylim(0, top * 1.1)
        axes.set_xlim(0, length / unit)
        axes.set_xlabel(name)
        axes.set_ylabel("GiB")
        return svg(figure, "VRAM by phase")


def thin(x: Sequence[float], y: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most about `points` of a curve; of each stretch the lowest and the highest stay, so that spikes do."""
    if len(x) <= points:
        return list(x), list(y)
    stretch = -(-len(x) // (points // 2))
    kept: list[int] = []
    for start in range(0, len(x), stretch):
        part = [i for i in range(start, min(start + stretch, len(x))) if not math.isnan(y[i])]
        if part:
            kept += sorted({min(part, key=lambda i: y[i]), max(part, key=lambda i: y[i])})
    return [x[i] for i in kept], [y[i] for i in kept]


def svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element that scales with its container and takes the page's colours and font."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's own font draws the text
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    label = f' role="img" aria-label="{escape(title)}"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', lambda found: found[1] + label, text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)
    text = (
        re.sub(r"font: (?:(bold|\d00) )?([\d.]+px) inherit", r"font-size: \2; font-weight: \1", text)
        .replace("font-weight: ;", "")
        .replace('font-weight: "', '"')
    )
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _figure(title: str, inches: tuple[float, float] = (4.8, 2.8)) -> tuple[Figure, Axes]:
    width, height = inches
    figure = Figure(figsize=inches)
    # Margins in inches by hand: matplotlib's own layout engines draw everything twice to find them.
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.1 / width, top=1 - 0.3 / height, bottom=0.44 / height)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)  # a meter's name is a word, whatever signs are in it
    axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    return figure, axes


def legend(names: Iterable[str]) -> str:
    """The key of `curves`, as HTML."""
    return "".join(
        f'<span class="key"><i style="background:var(--run{i % 6})"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
