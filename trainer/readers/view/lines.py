"""The run as plain lines: one fact a line, `key=value` pairs, so that grep, awk and a log collector can read them.

Steps and progress are thinned to one line in ten seconds (and the first and last); everything else is said once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from trainer import events as ev
from trainer.readers.view.state import RunState
from trainer.settings.overlay import effective

INTERVAL_SECONDS = 10.0


class Thinner:
    """Says yes at most once in an interval; `always` for what must not be missed."""

    def __init__(self, interval: float = INTERVAL_SECONDS):
        self.interval, self.last = interval, -math.inf

    def __call__(self, now: float, always: bool) -> bool:
        if not always and now - self.last < self.interval:
            return False
        self.last = now
        return True


def lines(state: RunState, event: ev.Event, thinner: Thinner) -> Iterator[str]:
    """The lines that `event` is worth, `state` being the run after it."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    for text in _texts(state, event, thinner):
        yield f"{clock} {text}"


def _texts(state: RunState, event: ev.Event, thinner: Thinner) -> Iterator[str]:
    match event:
        case ev.RunStarted():
            yield f"run folder={event.run_dir} model={event.model} device={event.device}" + (
                f" resumed_from={event.resumed_from}" if event.resumed_from else ""
            )
            for key, value, origin in effective(event.config, event.provenance):
                yield f"setting {key}={value} ({origin})"
        case ev.PhotosScanned():
            yield f"photos {event.summary}"  # what is wrong with them follows as notices
            for line in event.account:
                yield f"photos {line}"
        case ev.PlanReady():
            for line in event.text.splitlines():
                yield f"plan {line}"
        case ev.PhaseStarted():
            yield f"{event.phase}: started" + (f" total={event.total}" if event.total else "") + _after(event.detail)
        case ev.PhaseProgress():
            # what cannot be counted, such as waiting for another run, has no line: it has said what it is
            if event.total and thinner(event.time, event.done in (1, event.total)):
                eta = (
                    f" eta={duration(state.seconds_left)}"
                    if not math.isnan(state.seconds_left) and event.done < event.total
                    else ""
                )
                yield f"{event.phase}: done={event.done}/{event.total}{eta}" + _after(event.detail)
        case ev.PhaseEnded():
            peak = f" vram_peak={size(event.vram_peak_bytes)}" if event.vram_peak_bytes else ""
            yield f"{event.phase}: ended seconds={event.seconds:.1f}{peak} ram={size(event.ram_bytes)}" + _after(
                event.detail
            )
        case ev.Step():
            if thinner(event.time, event.step in (1, event.total)):
                yield _step(state, event)
        case ev.Meters():
            yield f"meters step={event.step} " + " ".join(
                f"{_key(k)}={number(v)}" for k, v in state.meters[-1].values.items()
            )
            if event.verdict:
                yield f"warning: {event.verdict}"
        case ev.Sampled():
            sheet = event.sheet or (event.paths or ["-"])[0]
            yield f"sample: step={event.step} pictures={len(event.paths)} sheet={sheet}"
        case ev.CheckpointSaved():
            yield (
                f"checkpoint: step={event.step} kind={event.kind} size={size(event.size_bytes)} "
                f"seconds={event.seconds:.1f} path={event.path}"
            )
        case ev.Exported():
            yield (
                f"export: format={_key(event.format)} precision={event.precision} size={size(event.size_bytes)} "
                f"max_error={event.max_error:.2g} path={event.path}"
            )
        case ev.Notice():
            yield (
                ("warning: " if event.level == "warning" else "note: ")
                + event.text
                + (f" (fix: {event.fix})" if event.fix else "")
            )
        case ev.Said():
            yield f"library: {event.text}"
        case ev.Finished():
            took = duration(event.seconds)
            yield f"finished: status={event.status} step={event.step} time={took} folder={event.run_dir}"
            if event.error:
                yield f"error: {event.error}"


def _step(state: RunState, event: ev.Step) -> str:
    smooth = state.smooth[-1]
    pairs = {
        "step": f"{event.step}/{event.total}",
        "loss": number(smooth.total),
        "instance": number(smooth.instance),
        "class": number(smooth.cls),
        "lr": f"{event.lr:.3g}",
        "grad_norm": number(event.grad_norm),
        "steps/s": number(1 / state.step_seconds if state.step_seconds > 0 else math.nan),
        "images/s": number(state.images_per_second),
        "eta": duration(state.seconds_left),
        "vram": size(event.vram_bytes) if event.vram_bytes else "-",
        "vram_peak": size(event.vram_peak_bytes) if event.vram_peak_bytes else "-",
        "ram": size(event.ram_bytes),
    }
    return "train: " + " ".join(f"{k}={v}" for k, v in pairs.items() if v != "-")


def _after(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _key(name: str) -> str:
    return name.replace(" ", "_")


def gib(size_bytes: float) -> str:
    """Bytes as people compare them: GiB, MiB below one tenth of it, KiB below one MiB (a small adapter)."""
    if size_bytes >= 0.1 * 2**30:
        return f"{size_bytes / 2**30:.1f} GiB"
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes >= 2**20 or not size_bytes else f"{size_bytes / 2**10:.0f} KiB"


def size(size_bytes: float) -> str:
    """The same without the blank, as one value of a line."""
    return gib(size_bytes).replace(" ", "")


def duration(seconds: float) -> str:
    """1h05m, 4m09s, 12s; "-" where unknown."""
    if math.isnan(seconds) or math.isinf(seconds):
        return "-"
    seconds = max(0, round(seconds))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def number(value: float) -> str:
    """Four digits that matter; "-" where not measured."""
    return "-" if math.isnan(value) else f"{value:.4f}" if 0.001 <= abs(value) < 100 else f"{value:.3g}"
