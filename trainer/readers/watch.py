"""`python -m trainer watch RUN`: the screen of a run in another process, or of a finished one, from its log alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trainer.events import Controls, Event, PhotosScanned, RunStarted, Sampled
from trainer.readers import log
from trainer.readers.tui import dashboard, plain, wants_dashboard
from trainer.readers.view.page import locate
from trainer.readers.view.state import RunState, apply


def main(run: Path) -> int:
    """Follow `run` until it has finished or the person leaves; the run itself is never touched."""
    controls = Controls()
    events = placed(log.follow(run, stop=lambda: controls.quit), Path(run))
    try:
        if wants_dashboard("auto", sys.stdout):
            dashboard(events, controls, watching=True)
        else:
            plain(events)
    except KeyboardInterrupt:
        return 130  # only the watching ends
    return 0


def placed(events: Iterable[Event], run: Path) -> Iterator[Event]:
    """Pictures as they are found from here: a log names them as seen from where its run was started."""
    state = RunState()

    def there(paths: list[str]) -> list[str]:
        return [str(locate(path, state, run) or path) for path in paths]

    for event in events:
        if isinstance(event, RunStarted):
            state = apply(RunState(), event)
        elif isinstance(event, Sampled):
            event = replace(event, paths=there(event.paths))
        elif isinstance(event, PhotosScanned):
            event = replace(event, photos=there(event.photos))
        yield event
