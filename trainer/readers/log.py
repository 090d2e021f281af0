"""The record of a run: `RUN/log.jsonl`, one event a line, enough to replay the dashboard and to write the report.

`record(events)` passes a stream of events on and writes each one first; `read(run)` and `follow(run)` give it back.
The file is only ever appended to, and every line has left the program before the next event is asked for, so a crash
costs at most half a line.

Structure of the log
--------------------
A line is one JSON object: `"event"` (the kind), `"time"` (seconds since the epoch) and the fields of that kind, as
`trainer/events.py` declares them. Sizes are bytes, times seconds, shares of one; `null` is "not measured" (nan),
`"inf"` and `"-inf"` are strings. In the order of their appearance:

| event           | when                                   | fields                                                   |
|-----------------|----------------------------------------|----------------------------------------------------------|
| RunStarted      | first; again where a run goes on       | run_dir config provenance device model versions          |
|                 |                                        | resumed_from                                             |
| PhotosScanned   | once                                   | summary photos ignored problems account                  |
| PlanReady       | once                                   | text budget_bytes phases parts                           |
| PhaseStarted    | a phase begins, maybe inside another   | phase total detail                                       |
| PhaseProgress   | within a phase                         | phase done total detail                                  |
| PhaseEnded      | a phase ends                           | phase seconds vram_peak_bytes ram_bytes detail folder    |
| Step            | every optimizer step                   | step total loss instance_loss class_loss lr grad_norm    |
|                 |                                        | seconds images vram_bytes vram_peak_bytes                |
|                 |                                        | vram_reserved_bytes ram_bytes gpu_load gpu_celsius       |
| Meters          | readings of the guard                  | step values verdict                                      |
| Sampled         | pictures were drawn                    | step paths prompts seeds sheet                           |
| CheckpointSaved | a checkpoint is complete on disk       | step path size_bytes seconds kind                        |
| Exported        | an export was loaded back and compared | path format precision size_bytes max_error usage         |
| Notice          | to know; "info" or "warning"           | text fix level                                           |
| Said            | a library spoke under the dashboard    | text source                                              |
| Finished        | last: "done", "interrupted", "failed"  | status step seconds run_dir text error                   |

A resumed run appends a second RunStarted; Step lines whose numbers come again replace the earlier ones. With pandas:
`pd.read_json("RUN/log.jsonl", lines=True).query("event == 'Step'")`. TensorBoard and Weights & Biases (`--report_to`)
get the same numbers through accelerate's trackers, under the names in `scalars()`, in `RUN/trackers` or
`--logging_dir`.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from trainer.errors import ConfigError
from trainer.events import Event, Finished, Meters, RunStarted, Sampled, Step, from_json, to_json
from trainer.files.shown import all_shown
from trainer.machine import libraries
from trainer.readers.view.state import settings
from trainer.settings.config import Config

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

NAME = "log.jsonl"
SEVERAL_LINES = {"text", "error", "fix", "usage", "verdict"}


def record(events: Iterable[Event], config: Config | None = None) -> Generator[Event, None, None]:
    """Pass `events` on; write each to the log (from RunStarted on, which names the folder) and to the trackers `config`
    asks for.
    """
    if config is not None:
        check(config)
    early: list[Event] = []  # what came before the folder had a name
    file: TextIO | None = None
    trackers: list[GeneralTracker] = []
    with ExitStack() as last:  # whoever stops listening stops the run; its `finally` runs now rather than some time
        if isinstance(events, Generator):
            last.callback(events.close)
        ended = Finished("failed", 0, 0.0, "", "")
        try:
            for event in events:
                if isinstance(event, RunStarted) and file is None:
                    file = last.enter_context(_open(Path(event.run_dir)))
                    ended = replace(ended, run_dir=event.run_dir)
                    trackers = _trackers(config, event) if config is not None else []
                    file.writelines(to_json(e) + "\n" for e in early)
                    for tracker in trackers:
                        last.callback(tracker.finish)
                ended = replace(ended, step=event.step) if isinstance(event, Step) else ended
                if file is None:
                    early.append(event)
                else:
                    file.write(to_json(event) + "\n")
                    file.flush()
                for tracker in trackers:
                    _track(tracker, event)
                yield event
        except GeneratorExit:
            raise
        except (
            BaseException
        ) as error:  # nobody waits for more of this run, and whoever mends it finds all that is known
            if file is not None:
                broken_off = isinstance(error, KeyboardInterrupt)
                trace = "" if broken_off else "".join(traceback.format_exception(error))
                status = "interrupted" if broken_off else "failed"
                with suppress(OSError):  # a disk that took no line takes none now
                    file.write(to_json(replace(ended, status=status, error=trace, time=time.time())) + "\n")
                    file.flush()
            raise


def read(run: str | Path) -> Iterator[Event]:
    """The events of a recorded run. Half a line (a crash) and kinds of a newer version are passed over."""
    with _read(run) as file:
        for line in file:
            event = parse(line)
            if event is not None:
                yield event


def follow(run: str | Path, poll_seconds: float = 0.5, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Like `read`, then waits for more until the run says that it has finished, or `stop()`."""
    with _read(run) as file:
        rest, last = "", None
        while not stop():
            text = file.read(1 << 16)
            if not text:
                if isinstance(last, Finished):
                    return
                time.sleep(poll_seconds)
                continue
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                event = parse(line)
                if event is not None:
                    last = event
                    yield event


def parse(line: str) -> Event | None:
    """The event of one line, its texts fit to be shown; None where it is cut off, damaged, or of a kind or shape that
    this version does not know."""
    try:
        return clean(from_json(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def clean(event: Event) -> Event:
    """Without what a terminal would obey: what is in captions, file names and logs is somebody else's."""
    texts = {
        name: all_shown(value, lines=name in SEVERAL_LINES)
        for name, value in vars(event).items()
        if isinstance(value, (str, list, dict))
    }
    return replace(event, **texts) if any(texts[name] != getattr(event, name) for name in texts) else event


def check(config: Config) -> None:
    """Refuse trackers that are not installed or do not load, before anything else is loaded."""
    for name in config.run.report_to:
        if not libraries.loads(name) and not (name == "tensorboard" and libraries.loads("tensorboardX")):
            raise libraries.lacking(f"--report_to {name} needs", name, "leave --report_to out")


def scalars(event: Event) -> dict[str, float]:
    """What trackers plot of an event; readings that were not taken are left out."""
    if isinstance(event, Step):
        values = {
            "loss/total": event.loss,
            "loss/instance": event.instance_loss,
            "loss/class": event.class_loss,
            "train/learning_rate": event.lr,
            "train/grad_norm": event.grad_norm,
            "speed/steps_per_second": 1 / event.seconds if event.seconds > 0 else math.nan,
            "speed/images_per_second": event.images / event.seconds if event.seconds > 0 else math.nan,
            "memory/vram_gib": event.vram_bytes / 2**30 or math.nan,
            "memory/vram_peak_gib": event.vram_peak_bytes / 2**30 or math.nan,
            "memory/ram_gib": event.ram_bytes / 2**30,
            "gpu/load": event.gpu_load,
            "gpu/celsius": event.gpu_celsius,
        }
    elif isinstance(event, Meters):
        values = {f"meters/{name}": math.nan if value is None else value for name, value in event.values.items()}
    else:
        return {}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _path(run: str | Path) -> Path:
    path = Path(run)
    return path / NAME if path.is_dir() else path


def _read(run: str | Path) -> TextIO:
    """The log of a run, which may be named itself. Bytes that are no UTF-8 cost their own line only, but a file of which no
    line is an event is no log: who waits for more of it waits for ever. That of a run that has just begun may be empty."""
    path, fix = _path(run), "name the folder of a run, such as the newest one in runs/"
    if not path.is_file():
        raise ConfigError(f"{run} holds no {NAME}", fix)
    file = path.open(encoding="utf-8", errors="replace")
    begins = file.read(1 << 20)
    file.seek(0)
    half = "\n" not in begins and len(begins) < 1 << 20  # of a line that is being written
    if not (half and path.name == NAME) and not any(map(parse, begins.split("\n"))):
        file.close()
        raise ConfigError(f"{path} is no log of a run", fix)
    return file


def _open(run_dir: Path) -> TextIO:
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / NAME
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise ConfigError(f"{path} is a link or no file: nothing is written through it", "remove it, and start again")
    file = path.open("a", encoding="utf-8")
    if path.stat().st_size and not _ends_a_line(path):
        file.write("\n")  # the run before this one died in the middle of a line
    return file


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _trackers(config: Config, started: RunStarted) -> list[GeneralTracker]:
    if not config.run.report_to:
        return []
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    folder = Path(config.run.logging_dir or Path(started.run_dir) / "trackers")
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(started.run_dir).name
    trackers: list[GeneralTracker] = []
    for kind in config.run.report_to:
        trackers.append(
            TensorBoardTracker(name, folder)
            if kind == "tensorboard"
            else WandBTracker("dreambooth", dir=str(folder), name=name)
        )
        trackers[-1].start()
        trackers[-1].store_init_configuration({k: _hyperparameter(v) for k, v in settings(started.config)})
    return trackers


def _hyperparameter(value: Any) -> int | float | str | bool:
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def _track(tracker: GeneralTracker, event: Event) -> None:
    values = scalars(event)
    if values:
        tracker.log(values, step=event.step)  # type: ignore[attr-defined]  # only events with a step have scalars
    elif isinstance(event, Sampled):
        import numpy
        from PIL import Image

        for prompt in dict.fromkeys(event.prompts):
            paths = [
                path
                for path, of in zip(event.paths, event.prompts, strict=False)
                if of == prompt and Path(path).is_file()
            ]
            pictures = [numpy.asarray(Image.open(path).convert("RGB")) for path in paths]
            for shape in {picture.shape for picture in pictures}:  # one batch holds one size
                batch = numpy.stack([picture for picture in pictures if picture.shape == shape])
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({prompt: batch}, step=event.step, **options)
