"""A run outlives whoever reads its lines: written to pipes without a reader, to full devices and to closed streams."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.events import Finished, Notice, RunStarted
from trainer.readers import log, stray, tui
from trainer.readers.lasting import Lasting, lasting

ROOT = Path(__file__).parents[2]


@contextmanager
def without_reader():
    """A text stream into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        yield stream


def test_what_nobody_reads_leads_nowhere_and_is_said_once():
    why = []
    with without_reader() as stream:
        lasts = Lasting(stream, why.append)
        for _ in range(3):
            print("a line", file=lasts, flush=True)
        assert lasts.encoding == stream.encoding
    assert why == ["Broken pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_disk_behind_the_output_is_no_full_disk_of_the_run():
    why = []
    with open("/dev/full", "w") as stream:
        print("a line", file=Lasting(stream, why.append), flush=True)
    assert why == ["No space left on device"]


def test_events_go_on_without_a_reader_and_the_log_has_all_of_them(tmp_path, monkeypatch):
    happened = [
        RunStarted(str(tmp_path), {}, {}, "CPU", "demo", {}),
        *(Notice(f"{n}") for n in range(5)),
        Finished("done", 0, 1.0, str(tmp_path), "bye"),
    ]
    said = stray.Stray()
    with without_reader() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting(lambda why: said.hear(Notice(why, level="warning"), why)):
            finished = tui.plain(log.record(stray.heard(happened, said))).finished
    assert finished is happened[-1]
    texts = [event.text for event in log.read(tmp_path) if isinstance(event, Notice)]
    assert texts == ["Broken pipe", "0", "1", "2", "3", "4"] or texts == ["0", "Broken pipe", "1", "2", "3", "4"]


@pytest.mark.parametrize("closed", [[1], [0, 1, 2]])
def test_no_file_takes_the_number_of_a_stream_that_was_closed(tmp_path, closed):
    code = (
        "import os, sys\nfrom trainer.readers.lasting import fill_closed\n"
        f"fill_closed()\nfile = open({str(tmp_path / 'weights')!r}, 'wb')\nfile.write(b'weights'); file.flush()\n"
        "print('a line', flush=True); print('another', file=sys.stderr, flush=True); os.write(1, b'from C')\n"
    )

    def close():
        for number in closed:
            os.close(number)

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, preexec_fn=close, stderr=subprocess.DEVNULL)
    assert done.returncode == 0
    assert (tmp_path / "weights").read_bytes() == b"weights"


def test_a_command_that_only_says_something_ends_with_its_reader():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 0 and done.stderr == ""
