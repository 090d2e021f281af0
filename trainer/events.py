"""What the stages yield. The screen, `log.jsonl`, the report, trackers, benchmarks and tests all read this one stream.

Every event is a frozen dataclass of plain values (numbers, strings, lists, dicts), so it survives a round trip through
JSON: `to_json(event)` writes one log line, `from_json(line)` gives the same event back, but for a nan inside a dictionary,
which comes back as None. Sizes are bytes, times seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypeVar

PHASES = ("load", "class images", "cache images", "cache text", "train", "sample", "save", "export")


@dataclass(frozen=True)
class Event:
    """Base of all events; `time` is seconds since the epoch."""

    time: float = field(default_factory=time.time, kw_only=True)


END_OF_TIME = 253_402_300_800  # the year 10000, which no calendar prints
T = TypeVar("T")
Stage: TypeAlias = Generator[Event, None, T]  # what a stage is: events on the way, a value at the end


def outcome(stage: Stage[T]) -> T:
    """What `stage` returns, its events unread."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def watched(stage: Stage[T], see: Callable[[Event], Iterable[Event] | None]) -> Stage[T]:
    """The same events and result; `see` is shown each event and may answer with more, which follow it."""
    while True:
        try:
            event = next(stage)
        except StopIteration as end:
            return end.value
        yield event
        yield from see(event) or ()


def while_wanted(stage: Stage[T], controls: Controls) -> Stage[T | None]:
    """The same events until somebody asks to quit; then `stage` is left where it stands, and None is its result."""
    while not controls.quit:
        try:
            event = next(stage)
        except StopIteration as end:
            return end.value
        yield event
    stage.close()
    return None


@dataclass(frozen=True)
class RunStarted(Event):
    run_dir: str
    config: dict[str, Any]  # the fully resolved settings, nested by section
    provenance: dict[str, str]  # "train.learning_rate" -> "sd1 default" | "preset 12gb" | "file x.toml" | "flag"
    device: str  # "NVIDIA GeForce RTX 3060" or "2 x CPU (1 threads)"
    model: str
    versions: dict[str, str]
    resumed_from: str = ""


@dataclass(frozen=True)
class PhotosScanned(Event):
    summary: str  # "5 photos, 2 portrait, smallest 480 px; prompt 'a photo of hta dog' for all"
    photos: list[str]  # paths
    ignored: int = 0
    problems: list[str] = field(default_factory=list)
    account: list[str] = field(
        default_factory=list
    )  # what was taken and left by folder, prompts and where they come from


@dataclass(frozen=True)
class PlanReady(Event):
    text: str  # the explanation of the choice, ready to print
    budget_bytes: int
    phases: dict[str, int]  # phase -> planned VRAM peak
    parts: dict[str, int] = field(default_factory=dict)  # what the largest peak consists of


@dataclass(frozen=True)
class PhaseStarted(Event):
    phase: str  # one of PHASES
    total: int = 0  # units of work; 0 where it cannot be counted
    detail: str = ""


@dataclass(frozen=True)
class PhaseProgress(Event):
    phase: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class PhaseEnded(Event):
    phase: str
    seconds: float
    vram_peak_bytes: int  # allocated, this phase alone; 0 on a CPU
    ram_bytes: int  # resident set of the process at the end of the phase
    detail: str = ""  # "200 class images reused", "5 photos encoded, 0 from cache"
    folder: str = ""  # where its results lie, if they are files to look at


@dataclass(frozen=True)
class Step(Event):
    step: int  # optimizer steps done, counted from 1
    total: int
    loss: float
    instance_loss: float
    class_loss: float  # nan without prior preservation
    lr: float
    grad_norm: float  # before clipping; nan where it is not computed
    seconds: float  # wall time of this step
    images: int  # pictures trained on in this step, class images included
    vram_bytes: int  # allocated now
    vram_peak_bytes: int  # allocated, since the phase began
    vram_reserved_bytes: int
    ram_bytes: int
    gpu_load: float = float("nan")  # 0..1
    gpu_celsius: float = float("nan")


@dataclass(frozen=True)
class Meters(Event):
    """Readings of the guard: subject and prompt similarity, diversity, drift, held-out losses."""

    step: int
    values: dict[str, float]
    verdict: str = ""  # "would have stopped at step 420: drift"


@dataclass(frozen=True)
class Sampled(Event):
    step: int
    paths: list[str]
    prompts: list[str]
    seeds: list[int]
    sheet: str = ""


@dataclass(frozen=True)
class CheckpointSaved(Event):
    step: int
    path: str
    size_bytes: int
    seconds: float
    kind: str = "interval"  # "interval" | "last" | "best" | "asked" | "moved"


@dataclass(frozen=True)
class Exported(Event):
    path: str
    format: str  # "diffusers" | "single file" | "lora diffusers" | "lora kohya"
    precision: str
    size_bytes: int
    max_error: float  # largest absolute difference after loading back
    usage: str = ""  # how to use it, ready to paste


@dataclass(frozen=True)
class Notice(Event):
    """Something the person should know; a warning stays visible, and says how to mend it."""

    text: str
    fix: str = ""
    level: str = "info"  # "info" | "warning"


@dataclass(frozen=True)
class Said(Event):
    """What a library printed, logged or warned of while the dashboard had the screen; each text once a run."""

    text: str
    source: str = "output"  # "output" | "warning"


@dataclass(frozen=True)
class Finished(Event):
    status: str  # "done" | "interrupted" | "failed"
    step: int
    seconds: float
    run_dir: str
    text: str  # where everything is and what to type next
    error: str = ""


KINDS = {
    cls.__name__: cls
    for cls in (RunStarted, PhotosScanned, PlanReady, PhaseStarted, PhaseProgress, PhaseEnded, Step, Meters, Sampled,
                CheckpointSaved, Exported, Notice, Said, Finished)
}  # fmt: skip


def to_json(event: Event) -> str:
    """One line of `log.jsonl`: {"event": kind, "time": ..., fields...}; nan and infinities become null, "inf", "-inf"."""
    return json.dumps({"event": type(event).__name__} | {k: _plain(v) for k, v in asdict(event).items()})


def from_json(line: str) -> Event:
    """The event a line of `log.jsonl` holds. Raises KeyError for an unknown kind, TypeError for unknown fields and for
    values of another type than the field's: whoever reads an event may rely on what it declares."""
    values = json.loads(line)
    cls = KINDS[values.pop("event")]
    declared = Event.__annotations__ | cls.__annotations__
    floats = {name for name, kind in declared.items() if kind == "float"}
    fields: dict[str, Any] = {k: _number(v) if k in floats else v for k, v in values.items()}
    for name, value in fields.items():
        if name in declared and not _is(value, declared[name]):
            raise TypeError(f"{cls.__name__}.{name} is {type(value).__name__}, not {declared[name]}")
    if not 0 <= values.get("time", 0.0) < END_OF_TIME:
        raise TypeError(f"{cls.__name__}.time is no time")
    return cls(**fields)


def _is(value: Any, kind: str) -> bool:
    """Whether `value` is of the type that an annotation names: a plain one, or a list or dictionary of such."""
    outer, _, inner = kind.partition("[")
    if outer == "list":
        return isinstance(value, list) and all(_is(each, inner[:-1]) for each in value)
    if outer == "dict":
        inner = inner[:-1].partition(", ")[2]
        return isinstance(value, dict) and all(_is(each, inner) for each in value.values())
    if outer == "int":  # of a size that a number on the screen may have
        return type(value) is int and abs(value) < 2**63
    if outer == "float":
        return value is None or type(value) in (int, float)
    return outer == "Any" or isinstance(value, str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


@dataclass
class Controls:
    """What the person at the keyboard asks of a running loop; the screen sets the flags, the loop polls between steps."""

    sample: bool = False
    checkpoint: bool = False
    pause: bool = False
    quit: bool = False

    def take(self, name: str) -> bool:
        """True once for each request of `sample` or `checkpoint`."""
        asked = getattr(self, name)
        setattr(self, name, False)
        return asked
