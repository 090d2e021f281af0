"""One run as a fold over its events: `state = apply(state, event)`, the same for a live run, a log and a test.

A state is immutable, so the thread that draws may hold one while the thread that trains makes the next: no locks. The
curves are kept smoothed as they grow, s += (x - s) * max(1/n, 0.03): a mean at first, later an average over some 33
steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer import events as ev

SMOOTHING = (
    0.03  # diffusion losses scatter by their own size from timestep to timestep; 33 steps halve that three times over
)


@dataclass(frozen=True)
class Span:
    """One stay in a phase. A phase met again (sampling in the middle of training) has several."""

    phase: str
    start: float
    end: float = math.nan  # nan while it lasts
    done: int = 0
    total: int = 0
    detail: str = ""
    folder: str = ""
    inside: str = ""  # the phase around it
    inner_seconds: float = 0.0  # spent in phases that began and ended inside this one
    seconds: float = 0.0
    vram_peak_bytes: int = 0
    ram_bytes: int = 0

    @property
    def open(self) -> bool:
        return math.isnan(self.end)

    @property
    def own_seconds(self) -> float:
        return max(0.0, self.seconds - self.inner_seconds)


@dataclass(frozen=True)
class Smooth:
    """The losses at one step, smoothed; `cls` is nan without prior preservation."""

    instance: float
    cls: float
    total: float


@dataclass(frozen=True)
class RunState:
    started: ev.RunStarted | None = None
    photos: ev.PhotosScanned | None = None
    plan: ev.PlanReady | None = None
    spans: tuple[Span, ...] = ()
    steps: tuple[ev.Step, ...] = ()
    smooth: tuple[Smooth, ...] = ()
    step_seconds: float = math.nan  # smoothed
    meters: tuple[ev.Meters, ...] = ()
    samples: tuple[ev.Sampled, ...] = ()
    checkpoints: tuple[ev.CheckpointSaved, ...] = ()
    exports: tuple[ev.Exported, ...] = ()
    notices: tuple[ev.Notice, ...] = ()
    said: tuple[ev.Said, ...] = ()
    finished: ev.Finished | None = None
    begun: float = math.nan  # time of the first and the last event
    time: float = math.nan
    gaps: tuple[tuple[float, float], ...] = ()  # (time of a resumption, seconds since the run had broken off)
    vram_peak_bytes: int = 0  # of all phases so far

    @property
    def step(self) -> ev.Step | None:
        return self.steps[-1] if self.steps else None

    @property
    def span(self) -> Span | None:
        """The innermost phase that is open."""
        return next((span for span in reversed(self.spans) if span.open), None)

    @property
    def warnings(self) -> tuple[ev.Notice, ...]:
        return tuple(notice for notice in self.notices if notice.level == "warning")

    @property
    def has_prior(self) -> bool:
        return any(not math.isnan(s.cls) for s in self.smooth[-1:])

    @property
    def planned_bytes(self) -> int:
        return max(self.plan.phases.values(), default=0) if self.plan else 0

    @property
    def seconds_left(self) -> float:
        """Of the phase that is open; nan where nothing can be said yet."""
        span = self.span
        if span is None or self.finished:
            return math.nan
        if span.phase == "train":
            return (self.step.total - self.step.step) * self.step_seconds if self.step else math.nan
        return (span.total - span.done) * (self.time - span.start) / span.done if span.done and span.total else math.nan

    @property
    def images_per_second(self) -> float:
        return self.step.images / self.step_seconds if self.step and self.step_seconds > 0 else math.nan

    def clock(self, time: float) -> float:
        """Seconds of running until `time`, without the gaps between a break and its resumption."""
        return time - self.begun - sum(seconds for when, seconds in self.gaps if when <= time)

    def setting(self, name: str, default: Any = None) -> Any:
        """A resolved setting by its dotted name, such as "train.learning_rate"."""
        value: Any = self.started.config if self.started else {}
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    def phase_status(self) -> dict[str, str]:
        """Each phase -> "done" | "now" | "held" (waits for a phase inside it) | "next" | "skipped" (passed over), in
        order.
        """
        met = {span.phase for span in self.spans}
        names = [
            n
            for n in ev.PHASES
            if n != "class images" or n in met or self.setting("prior.with_prior_preservation", True)
        ]
        outer = [span for span in self.spans if not span.inside]  # sampling inside training does not end training
        reached = (
            len(names)
            if self.finished
            else max((names.index(span.phase) for span in outer if span.phase in names), default=-1)
        )
        status = {}
        for i, name in enumerate(names):
            if self.span and name == self.span.phase:
                status[name] = "now"
            elif any(span.open and span.phase == name for span in outer):
                status[name] = "held"
            elif name in met and (i <= reached or self.finished):
                status[name] = "done"
            else:  # prompts may be encoded before class images are drawn: only training settles what was passed over
                passed = i < reached and (self.finished or reached >= names.index("train"))
                status[name] = "skipped" if passed else "next"
        return status

    def seconds_by_phase(self) -> dict[str, float]:
        """Time of each phase without the phases inside it."""
        totals: dict[str, float] = {}
        for span in self.spans:
            totals[span.phase] = totals.get(span.phase, 0.0) + span.own_seconds
        return totals


def apply(state: RunState, event: ev.Event) -> RunState:
    """The state after `event`. Kinds it does not know only move the clock."""
    before = state.time
    state = replace(state, time=event.time, begun=event.time if math.isnan(state.begun) else state.begun)
    match event:
        case ev.RunStarted():
            # A resumed run is written to the same log: its curves go on, and what had broken off is closed.
            spans = tuple(replace(s, end=before) if s.open else s for s in state.spans)
            gaps = (*state.gaps, (event.time, event.time - before)) if state.started else ()
            return replace(state, started=event, finished=None, spans=spans, gaps=gaps)
        case ev.PhotosScanned():
            return replace(state, photos=event)
        case ev.PlanReady():
            return replace(state, plan=event)
        case ev.PhaseStarted():
            around = state.span.phase if state.span else ""
            span = Span(event.phase, event.time, total=event.total, detail=event.detail, inside=around)
            return replace(state, spans=(*state.spans, span))
        case ev.PhaseProgress():
            return _change(state, event.phase, done=event.done, total=event.total, detail=event.detail or None)
        case ev.PhaseEnded():
            return _end(state, event)
        case ev.Step():
            return _step(state, event)
        case ev.Meters():
            values = {k: math.nan if v is None else float(v) for k, v in event.values.items()}
            return replace(state, meters=(*state.meters, replace(event, values=values)))
        case ev.Sampled():
            return replace(state, samples=(*tuple(s for s in state.samples if s.step != event.step), event))
        case ev.CheckpointSaved():
            return replace(state, checkpoints=(*state.checkpoints, event))
        case ev.Exported():
            return replace(state, exports=(*tuple(e for e in state.exports if e.path != event.path), event))
        case ev.Notice():
            return replace(state, notices=(*state.notices, event))
        case ev.Said():
            return replace(state, said=(*state.said, event))
        case ev.Finished():
            return replace(
                state, finished=event, spans=tuple(replace(s, end=event.time) if s.open else s for s in state.spans)
            )
    return state


def replay(events: Iterable[ev.Event]) -> RunState:
    """The state after all of `events`."""
    state = RunState()
    for event in events:
        state = apply(state, event)
    return state


def _change(state: RunState, phase: str, **changes: Any) -> RunState:
    """Change the innermost open span of `phase`; None leaves a field as it was."""
    for i in reversed(range(len(state.spans))):
        if state.spans[i].phase == phase and state.spans[i].open:
            span = replace(state.spans[i], **{k: v for k, v in changes.items() if v is not None})
            return replace(state, spans=(*state.spans[:i], span, *state.spans[i + 1 :]))
    return state


def _end(state: RunState, event: ev.PhaseEnded) -> RunState:
    span = next((s for s in reversed(state.spans) if s.open and s.phase == event.phase), None)
    if span is None:  # a phase that only reports its end, because its work was found on disk
        state = replace(state, spans=(*state.spans, Span(event.phase, event.time - event.seconds)))
    done = span.total if span and span.total else None
    state = _change(
        state,
        event.phase,
        end=event.time,
        seconds=event.seconds,
        vram_peak_bytes=event.vram_peak_bytes,
        ram_bytes=event.ram_bytes,
        detail=event.detail or None,
        folder=event.folder,
        done=done,
    )
    state = replace(state, vram_peak_bytes=max(state.vram_peak_bytes, event.vram_peak_bytes))
    around = state.span
    if around is not None and span is not None and span.inside == around.phase:
        state = _change(state, around.phase, inner_seconds=around.inner_seconds + event.seconds)
    return state


def _step(state: RunState, event: ev.Step) -> RunState:
    keep = len(state.steps)
    while keep and state.steps[keep - 1].step >= event.step:  # resumed from an earlier checkpoint: those steps are void
        keep -= 1
    steps, smooth = state.steps[:keep], state.smooth[:keep]
    before = smooth[-1] if smooth else Smooth(math.nan, math.nan, math.nan)
    weight = max(1 / (keep + 1), SMOOTHING)
    pairs = ((before.instance, event.instance_loss), (before.cls, event.class_loss), (before.total, event.loss))
    smooth += (Smooth(*(_ema(old, new, weight) for old, new in pairs)),)
    seconds = _ema(state.step_seconds, event.seconds, max(1 / (keep + 1), 0.1))
    state = replace(
        state,
        steps=(*steps, event),
        smooth=smooth,
        step_seconds=seconds,
        vram_peak_bytes=max(state.vram_peak_bytes, event.vram_peak_bytes),
    )
    return _change(state, "train", done=event.step, total=event.total)


def _ema(before: float, value: float, weight: float) -> float:
    if math.isnan(before):
        return value
    return before if math.isnan(value) else before + weight * (value - before)


def settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.learning_rate", 2e-6), ... of a nested configuration, in its order."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
