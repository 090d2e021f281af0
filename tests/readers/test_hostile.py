"""A log is somebody else's word: nothing in it reaches a terminal or a page alive, and damage costs lines, not the run."""

import io
import json
import random
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_run import events

from trainer.events import KINDS, Finished, Meters, Notice, PhaseEnded, from_json, to_json
from trainer.readers import compare, log, report, tui
from trainer.readers.view.dashboard import frame
from trainer.readers.view.ink import plain
from trainer.readers.view.panels import View
from trainer.readers.view.state import replay

ALIVE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onload='x \x1b[31m\x1b]0;mine\x07 \udcff\u202e \\1 $\\frac{1}{2$"
ODD = (None, True, -1, 10**30, 1e308, "\x1b[2J", ["x"], {"x": 1}, [], {}, "", [[]], {"a": {"b": None}})
KEPT = {"event", "time"}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    every = list(events(folder))
    first = {type(event).__name__: event for event in reversed(every)}
    return [to_json(event) for number, event in enumerate(every) if number % 9 == 0 or event in first.values()]


def run_of(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / log.NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def everywhere(value):
    """`value` with the hostile text behind every text in it, keys included."""
    if isinstance(value, str):
        return value + ALIVE
    if isinstance(value, list):
        return [everywhere(each) for each in value]
    if isinstance(value, dict):
        return {key + ALIVE: everywhere(each) for key, each in value.items()}
    return value


def all_shown(run: Path) -> str:
    """What every reader makes of a run."""
    output = io.StringIO()
    tui.plain(log.read(run), output)
    state = replay(log.read(run))
    output.writelines(plain(row) for row in frame(state, 120, 40, View(pictures=False)))
    return output.getvalue() + report.write(run).read_text(encoding="utf-8")


class Alive(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes if name.startswith("on")]
        if names or tag in ("script", "iframe", "object", "embed", "foreignobject"):
            self.found.append((tag, names))


def test_nothing_in_a_log_is_alive_on_a_terminal_or_a_page(lines, tmp_path, capsys):
    values = [json.loads(line) for line in lines]
    hostile = [json.dumps({k: v if k in KEPT else everywhere(v) for k, v in row.items()}) for row in values]
    hostile += [
        to_json(Finished(ALIVE, 1, 1.0, "x", "text")),
        to_json(PhaseEnded(ALIVE, 1.0, 1, 1)),
        to_json(Meters(1, {ALIVE: 1.0})),
        to_json(Meters(2, {ALIVE: 2.0})),
    ]
    one, two = run_of(tmp_path / "one", hostile), run_of(tmp_path / "two", hostile[::2])
    said = all_shown(one)
    assert not set(said) & {"\x1b", "\x07", "\u202e", "\udcff"}
    parser = Alive()
    parser.feed(report.write(one).read_text(encoding="utf-8"))
    compare.main([one, two])
    parser.feed((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert parser.found == []
    assert not set(capsys.readouterr().out) & {"\x1b", "\x07", "\u202e", "\udcff"}


def test_events_of_a_running_run_reach_the_terminal_as_clean_as_logged_ones():
    output = io.StringIO()
    tui.plain([Notice(f"{ALIVE} one\x1b[2J", fix="first\nsecond")], output)
    assert "\x1b" not in output.getvalue() and "first\nsecond" in output.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_type_costs_its_line_and_nothing_else(lines, tmp_path, kind):
    """Every field of every kind, one after the other, holds what it should not."""
    rows = [json.loads(line) for line in lines]
    sample = next((row for row in rows if row["event"] == kind), {"event": kind, "time": 1.0, "text": "", "source": ""})
    odd = [json.dumps(sample | {name: value}) for name in sample for value in ODD]
    all_shown(run_of(tmp_path / kind, [*lines[:20], *odd, *lines[20:]]))


def test_damaged_bytes_cost_their_lines(lines, tmp_path):
    whole = ("\n".join(lines) + "\n").encode()
    chance = random.Random(0)
    for turn in range(4):
        damaged = bytearray(whole)
        for _ in range(40):
            place = chance.randrange(len(damaged))
            damaged[place : place + chance.choice((0, 1, 30))] = chance.choice(
                (b"", b"\xff\xc3", b"\n", b"\0", b"[" * 2000)
            )
        run = tmp_path / str(turn)
        run.mkdir()
        (run / log.NAME).write_bytes(damaged)
        assert list(log.read(run)), "nothing at all was left"
        all_shown(run)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"event": "Notice", "text": "a\udcc3',
        '{"event": "Notice", "text": 1}',
        "1" * 5000,
        "null",
        '{"event": []}',
    ],
)
def test_a_line_that_is_no_event_is_passed_over(line):
    assert log.parse(line) is None


def test_what_was_written_is_read_as_it_was():
    event = Notice("a\tb\nc é 😀", "fix", "warning")
    assert log.parse(to_json(event)).text == "a b\nc é 😀" and from_json(to_json(event)) == event


def test_a_link_in_the_place_of_the_log_is_not_written_through(tmp_path, lines):
    from trainer.errors import ConfigError

    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious\n")
    run.mkdir()
    (run / log.NAME).symlink_to(victim)
    first = next(event for event in map(from_json, lines) if type(event).__name__ == "RunStarted")
    object.__setattr__(first, "run_dir", str(run))
    with pytest.raises(ConfigError, match="link"):
        list(log.record([first]))
    assert victim.read_text() == "precious\n"
