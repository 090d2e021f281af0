"""`python -m trainer watch RUN`: the screen of a run in another process, or of a finished one, from its log alone."""

from __future__ import annotations

import sys
from pathlib import Path

from . import log
from .events import Controls
from .tui import dashboard, plain, wants_dashboard


def main(run: Path) -> int:
    """Follow `run` until it has finished or the person leaves; the run itself is never touched."""
    controls = Controls()
    events = log.follow(run, stop=lambda: controls.quit)
    try:
        if wants_dashboard("auto", sys.stdout):
            dashboard(events, controls, watching=True)
        else:
            plain(events)
    except KeyboardInterrupt:
        return 130  # only the watching ends
    return 0
