"""Libraries that warn, log, print or write to descriptor 2 under the dashboard: in the log once, on the screen never."""

import logging
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import pytest

from trainer.events import Finished, Notice, RunStarted, Said
from trainer.readers import log, report
from trainer.readers.stray import Stray, heard

ROOT = Path(__file__).parent.parent.parent
MARK = "zebra"  # in everything that the library of this test says, and nowhere else

# a run whose library talks in every way there is, twice each, and to every descriptor that leads to the terminal
NOISY = """
import ctypes, logging, os, subprocess, sys, time, warnings
from pathlib import Path
from recorded_run import events
from trainer.events import Controls, Step
from trainer.readers import log, tui
from trainer.readers.stray import Stray, heard

library = logging.getLogger("some.library")
library.addHandler(logging.StreamHandler())  # made before the screen: it holds the real stderr

def run():
    for event in events(Path(sys.argv[1]), steps=12):
        yield event
        if isinstance(event, Step) and event.step in (4, 6):
            warnings.warn("zebra warns", UserWarning)
            logging.getLogger("another").warning("zebra logs without a handler")
            library.warning("zebra logs")
            print("zebra prints")
            sys.stderr.write("zebra 10%\\rzebra 100%\\n")
            sys.__stderr__.write("zebra knows the real stderr\\n")
            os.write(1, b"zebra to descriptor 1\\n")
            os.write(2, b"zebra to descriptor 2\\n")
            ctypes.CDLL(None).puts(b"zebra from C, held back")
            subprocess.run([sys.executable, "-c", "print('zebra in a child')"])
            time.sleep(0.6)

stray = Stray()
done = tui.show(log.record(heard(run(), stray)), Controls(), "on", stray)
os.write(2, b"the screen has gone\\n")
library.warning("and the handler is back")
"""
SAYINGS = (
    "UserWarning: zebra warns",
    "zebra logs without a handler",
    "zebra logs",
    "zebra prints",
    "zebra 100%",
    "zebra knows the real stderr",
    "zebra to descriptor 1",
    "zebra to descriptor 2",
    "zebra from C, held back",
    "zebra in a child",
)


def test_a_library_is_heard_in_the_log_and_never_seen_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    places = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": places}
    for name in ("NO_COLOR", "PYTHONUNBUFFERED"):  # unbuffered, C would hold nothing back
        environment.pop(name, None)
    run = subprocess.Popen(
        [sys.executable, "-c", NOISY, str(tmp_path)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown, end = b"", time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other end was closed
                    break
            elif run.poll() is not None:
                break
        assert run.wait(60) == 0, shown[-2000:]
    finally:
        run.kill()
        os.close(ours)

    text = shown.decode(errors="replace")
    assert "instance loss" in text, "the dashboard was there"
    assert MARK not in text, re.findall(rf".{{60}}{MARK}.*", text)[:3]
    assert f"Libraries said {len(SAYINGS)} things" in text and "the screen has gone" in text
    assert "and the handler is back" in text
    said = [event for event in log.read(tmp_path / "run") if isinstance(event, Said)]
    for saying in SAYINGS:
        assert sum(event.text.startswith(saying) for event in said) >= 1, (saying, said)
    assert len(said) == len(SAYINGS), "each once"
    page = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert all(saying in page for saying in SAYINGS) and "Said by libraries" in page


@pytest.fixture
def handler():
    logger, made = logging.getLogger("some.library"), logging.StreamHandler(sys.stderr)
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


def texts(stray: Stray) -> list[str]:
    return [event.text for event in stray.take()]  # type: ignore[attr-defined]


def test_streams_and_handlers_are_put_back(handler: logging.StreamHandler) -> None:
    stream, stray = sys.stderr, Stray()
    with stray.caught():
        print("one\ntwo")
        logging.getLogger("some.library").warning("from a log")
        sys.stderr.write("10%\r20%\r30%\n")
        assert texts(stray) == ["one", "two", "from a log", "30%"]
        sys.stderr.write("no line's end")
    assert sys.stderr is stream and handler.stream is stream
    assert texts(stray) == ["no line's end"]


def test_a_handler_made_under_the_screen_speaks_again_when_it_has_gone(capsys: pytest.CaptureFixture[str]) -> None:
    stray = Stray()
    with stray.caught():
        late = sys.stderr
    late.write("afterwards\n")
    assert capsys.readouterr().err == "afterwards\n" and not stray.take()


def test_our_own_warnings_reach_the_person_as_notices() -> None:
    from trainer import machine

    stray = Stray()
    with stray.caught():
        warnings.showwarning(
            "memory could not be pinned", UserWarning, str(Path(machine.__file__).parent / "host.py"), 1
        )
    assert stray.take()[0].level == "warning"  # type: ignore[attr-defined]


def test_a_huge_text_from_a_descriptor_never_waits_for_its_reader() -> None:
    stray = Stray()
    with stray.caught():
        os.write(2, b"x" * 200_000 + b"\n")  # three times what a pipe holds, and nobody reads meanwhile
    assert [len(text) for text in texts(stray)] == [200_000]


def test_what_was_said_comes_before_the_event_that_followed_and_before_a_fault(tmp_path: Path) -> None:
    stray = Stray()

    def run():
        yield RunStarted(str(tmp_path), {}, {}, "CPU", "demo", {})
        print("first")
        yield Notice("second")
        print("third")
        raise ValueError("the run broke")

    with stray.caught(), pytest.raises(ValueError, match="broke"):
        for _ in log.record(heard(run(), stray)):
            pass
    *before, last = log.read(tmp_path)
    assert [getattr(event, "text", "") for event in before] == ["", "first", "second", "third"]
    assert last.status == "failed" and "the run broke" in last.error, "nobody waits for more of it"


def test_without_anything_said_a_report_has_no_such_section(tmp_path: Path) -> None:
    started = RunStarted(str(tmp_path), {}, {}, "CPU", "demo", {})
    list(log.record([started, Finished("done", 0, 1.0, str(tmp_path), "")]))
    assert "Said by libraries" not in report.write(tmp_path).read_text(encoding="utf-8")
