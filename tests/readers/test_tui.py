"""The screen: snapshots of the dashboard from a fixed stream, and the real thing on a pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_run import events
from rich.console import Console

from trainer.events import Controls, Event, Finished, Notice, PhaseEnded, PhaseProgress, PhaseStarted, Step
from trainer.readers import log, tui, watch
from trainer.readers.stray import Stray
from trainer.readers.view.charts import bar, braille, limits, sparkline
from trainer.readers.view.dashboard import frame
from trainer.readers.view.ink import plain
from trainer.readers.view.keys import interrupts, press
from trainer.readers.view.lines import gib
from trainer.readers.view.panels import View
from trainer.readers.view.pictures import gallery, half_blocks
from trainer.readers.view.state import RunState, apply, replay
from trainer.readers.view.terminal import Terminal

SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = ((80, 24), (160, 48))
SCRIPT = Path(__file__).parent.parent / "recorded_run.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    return list(events(tmp_path_factory.mktemp("recorded")))


def until(recorded: list[Event], stop: Callable[[Event], bool]) -> RunState:
    """The run after the first event that `stop` is true of."""
    end = next(i for i, event in enumerate(recorded) if stop(event))
    return replay(recorded[: end + 1])


def text(state: RunState, width: int, height: int, view: View | None = None) -> str:
    return "\n".join(plain(row) for row in frame(state, width, height, view or View())) + "\n"


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "class-images": lambda e: isinstance(e, PhaseProgress) and e.phase == "class images" and e.done == 80,
    "train": lambda e: isinstance(e, Step) and e.step == 250,
    "sample": lambda e: isinstance(e, PhaseProgress) and e.phase == "sample" and e.done == 2,
    "export": lambda e: isinstance(e, PhaseStarted) and e.phase == "export",
    "done": lambda e: isinstance(e, Finished),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_dashboard_looks_as_it_did_when_it_was_looked_at(
    recorded: list[Event], moment: str, width: int, height: int
) -> None:
    shown = text(until(recorded, MOMENTS[moment]), width, height)
    path = SNAPSHOTS / f"dashboard-{moment}-{width}x{height}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), (
        "look at it, then UPDATE_SNAPSHOTS=1 pytest tests/readers/test_tui.py"
    )


def test_a_recorded_log_replays_the_dashboard(recorded: list[Event]) -> None:
    list(log.record(recorded))
    run = recorded[-1].run_dir  # type: ignore[attr-defined]
    for width, height in SIZES:
        assert text(replay(log.read(run)), width, height) == text(replay(recorded), width, height)


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 12), (79, 23), (80, 24), (119, 60), (120, 30), (250, 80)])
def test_a_frame_fills_any_screen_and_never_more(recorded: list[Event], width: int, height: int) -> None:
    state = RunState()
    for i, event in enumerate(recorded):
        state = apply(state, event)
        if i % 250 == 100 or event is recorded[-1]:
            for view in (
                View(),
                View(help=True),
                View(large=True),
                View(pictures=False, asked=("pause",)),
            ):
                lines = frame(state, width, height, view)
                assert len(lines) == height
                for row in lines:
                    ends = [column + piece.cell_len for column, piece in row]
                    assert ends[-1] <= width
                    assert all(end < start for end, (start, _) in zip(ends, row[1:], strict=False)), "pieces overlap"


@pytest.mark.parametrize(("width", "height"), [(0, 0), (1, 1), (2, 50), (5, 24), (11, 3), (200, 1)])
def test_a_window_that_is_dragged_to_nothing_has_a_frame_too(recorded: list[Event], width: int, height: int) -> None:
    state = RunState()
    for i, event in enumerate(recorded):
        state = apply(state, event)
        if i % 250 == 100 or event is recorded[-1]:
            for view in (View(), View(help=True), View(large=True)):
                rows = frame(state, width, height, view)
                assert len(rows) <= height and all(c + piece.cell_len <= width for row in rows for c, piece in row)


def test_instance_and_class_loss_are_smoothed_apart() -> None:
    def step(n: int, instance: float, cls: float) -> Step:
        return Step(n, 9, instance + cls, instance, cls, 1e-6, 1.0, 0.5, 2, 0, 0, 0, 0)

    state = replay(step(n, 1.0 * n, 10.0) for n in range(1, 5))
    assert state.smooth[-1].instance == pytest.approx(2.5) and state.smooth[-1].cls == 10.0
    assert state.smooth[-1].total == pytest.approx(12.5), "a line never adds a raw loss to smoothed halves"
    assert state.images_per_second == pytest.approx(4.0)


def test_steps_repeated_after_a_resumption_replace_the_old_ones(recorded: list[Event]) -> None:
    state = until(recorded, lambda e: isinstance(e, Step) and e.step == 250)
    started = replace(recorded[0], time=state.time + 3600, resumed_from="step-000200")  # type: ignore[type-var]
    again = next(e for e in recorded if isinstance(e, Step) and e.step == 201)
    state = apply(apply(state, started), replace(again, time=state.time + 3700))
    assert [s.step for s in state.steps] == list(range(1, 202))
    assert len(state.smooth) == 201
    assert state.span is None, "what had broken off is closed"
    assert state.clock(state.time) < 3600, "the hour in between was no running time"


def test_sampling_inside_training_counts_as_sampling(recorded: list[Event]) -> None:
    inside = until(recorded, MOMENTS["sample"])
    assert inside.phase_status()["train"] == "held" and inside.phase_status()["sample"] == "now"
    assert inside.phase_status()["save"] == "next"
    seconds = replay(recorded).seconds_by_phase()
    assert seconds["sample"] == pytest.approx(32.0)
    trained = sum(span.seconds for span in replay(recorded).spans if span.phase == "train")
    assert seconds["train"] == pytest.approx(trained - 32.0)


def test_a_phase_out_of_order_passes_nothing_over_before_training() -> None:
    state = replay([PhaseStarted("load"), PhaseEnded("load", 1.0, 0, 0), PhaseStarted("cache text")])
    assert state.phase_status()["class images"] == "next"
    state = replay([PhaseStarted("load"), PhaseEnded("load", 1.0, 0, 0), PhaseStarted("train")])
    assert state.phase_status()["class images"] == "skipped"


def test_a_run_without_prior_has_no_class_images_and_one_curve(tmp_path: Path) -> None:
    state = replay(events(tmp_path, steps=40, with_prior=False, gpu=False))
    assert "class images" not in state.phase_status()
    shown = text(state, 80, 24)
    assert "class loss" not in shown and "instance loss" in shown and "no GPU in use" in shown


def test_warnings_stay_with_their_fix_and_the_newest_wins(recorded: list[Event]) -> None:
    state = until(recorded, MOMENTS["train"])
    for i in range(9):
        state = apply(state, Notice(f"trouble number {i}", f"mend {i}", "warning"))
    shown = text(state, 80, 24)
    assert "trouble number 8" in shown and "mend 8" in shown and "earlier warnings are in log.jsonl" in shown


def test_a_peak_over_the_budget_is_red(recorded: list[Event]) -> None:
    state = until(recorded, MOMENTS["train"])
    assert state.plan is not None
    styles = {str(s.style) for row in frame(state, 80, 24, View()) for _, piece in row for s in piece.spans}
    tight = replace(state, plan=replace(state.plan, budget_bytes=8 * 2**30))
    over = {str(s.style) for row in frame(tight, 80, 24, View()) for _, piece in row for s in piece.spans}
    assert "red" in over and "red" not in styles


def test_braille_rises_from_the_lower_left_to_the_upper_right() -> None:
    assert braille([0.0, 1.0, 2.0, 3.0], 2, 1, 0.0, 3.0) == ["⡠⠊"]
    assert braille([float("nan")] * 4, 2, 1, 0.0, 1.0) == ["  "]
    assert len(sparkline([1.0, 2.0, 3.0], 8)) == 8


def test_a_bar_shows_its_marks_and_never_outgrows_its_width() -> None:
    line = bar(20, 10.0, [(4.0, "green"), (99.0, "red")], [(8.0, "yellow")])
    assert len(line) == 20
    assert line.plain.index("┃") == 15
    assert [str(span.style) for span in line.spans] == ["green", "red", "yellow", "red"]
    assert len(bar(7, 0.0, [(1.0, "green")])) == 7


def test_pictures_become_half_blocks_of_their_own_shape(recorded: list[Event], tmp_path: Path) -> None:
    path = next(p for e in recorded for p in getattr(e, "paths", ()))
    lines = half_blocks(path, 20, 30)
    assert len(lines) == 10 and all(line.cell_len == 20 for line in lines), "a square is twice as wide as high in cells"
    assert half_blocks(str(tmp_path / "none.png"), 20, 10) == ()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert half_blocks(str(tmp_path / "broken.png"), 20, 10) == ()
    assert len(gallery((path,) * 4, 60, 30)) == 29, "two by two fills this room better than four abreast"


def test_only_changed_lines_are_sent(recorded: list[Event]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=160, height=48)
    terminal = Terminal(console)
    state = until(recorded, MOMENTS["train"])
    terminal.paint(frame(state, 160, 48, View()), (160, 48))
    whole = terminal.sent
    terminal.paint(frame(state, 160, 48, View()), (160, 48))
    assert terminal.sent == whole, "nothing changed, nothing sent"
    terminal.paint(frame(state, 160, 48, View(now=state.time + 1)), (160, 48))
    assert terminal.sent - whole < whole / 20, "only the clock moved"
    terminal.paint(frame(state, 100, 40, View()), (100, 40))
    assert "\x1b[2J" in console.file.getvalue().rsplit("\x1b[?2026h", 1)[-1], "a new size starts from a clean screen"  # type: ignore[attr-defined]


def test_drawing_takes_at_most_one_percent_of_the_time(recorded: list[Event]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=160, height=48)
    with Stray().caught():
        screen = tui.Screen(console, Controls(), False, Stray())
        screen.state = until(recorded, MOMENTS["train"])
        costs: list[float] = []
        draw = screen.draw
        screen.draw = lambda: costs.append(draw()) or costs[-1]  # type: ignore[method-assign, func-returns-value]
        before = time.monotonic()
        with screen:
            while time.monotonic() - before < 1.5:
                screen.state = replace(screen.state, time=time.time())
                time.sleep(0.05)
    assert costs, "it did draw"
    assert sum(costs[:-1]) <= 1.05 * tui.SHARE * (time.monotonic() - before), (
        "each frame is paid for by the rest after it"
    )
    assert sum(costs) == pytest.approx(screen.drawn_seconds)


def test_plain_lines_hold_every_fact_once_and_steps_thinned(recorded: list[Event]) -> None:
    output = io.StringIO()
    tui.plain(recorded, output)
    said = output.getvalue()
    assert "\x1b" not in said
    lines = said.splitlines()
    steps = [line for line in lines if " train: step=" in line]
    assert "step=1/400" in steps[0] and "step=400/400" in steps[-1]
    assert len(steps) < 40, "about one in ten seconds"
    assert all("instance=" in line and "class=" in line and "eta=" in line for line in steps)
    for fact in (
        "warning: attention fell back",
        "checkpoint: step=200",
        "export: format=single_file",
        "finished: status=done",
    ):
        assert any(fact in line for line in lines), fact


def test_waiting_that_cannot_be_counted_is_one_line_and_a_row_of_the_dashboard(recorded: list[Event]) -> None:
    begun = [*recorded[:1], PhaseStarted("class images", detail="waiting for another run")]
    waiting = [*begun, *(PhaseProgress("class images", 0, 0, time=begun[-1].time + 60 * n) for n in range(9))]
    tui.plain(begun, short := io.StringIO())
    tui.plain(waiting, long := io.StringIO())
    assert long.getvalue() == short.getvalue() and "waiting for another run" in long.getvalue()
    assert "waiting for another run" in text(replay(waiting), 160, 48)


def test_a_dashboard_needs_a_terminal_and_no_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert tui.wants_dashboard("auto", Terminal()) and not tui.wants_dashboard("off", Terminal())
    assert not tui.wants_dashboard("on", io.StringIO()), "there is no screen to draw on"
    latin = Terminal()
    monkeypatch.setattr(Terminal, "encoding", "latin-1", raising=False)
    assert not tui.wants_dashboard("auto", latin), "it has no braille"
    monkeypatch.setattr(Terminal, "encoding", "UTF-8", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not tui.wants_dashboard("auto", Terminal()) and tui.wants_dashboard("on", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not tui.wants_dashboard("on", Terminal())


def test_keys_ask_and_a_paused_run_can_still_be_left() -> None:
    controls = Controls()
    for key in "scp":
        press(key, controls)
    assert controls == Controls(sample=True, checkpoint=True, pause=True)
    press("p", controls)
    assert not controls.pause
    press("p", controls)
    press("q", controls)
    assert controls.quit and not controls.pause


def test_the_first_interrupt_asks_and_the_second_breaks_off() -> None:
    controls = Controls()
    before = signal.getsignal(signal.SIGINT)
    with interrupts(controls):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert controls.quit
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_run_leaves_the_screen_and_is_raised(recorded: list[Event]) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield from recorded[:5]
        raise ValueError("the run broke")

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    with pytest.raises(ValueError, match="the run broke"):
        tui.dashboard(broken(), Controls(), console=console)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.startswith("\x1b[?1049h") and written.endswith("\x1b[?1049l")


@pytest.fixture
def terminal():  # type: ignore[no-untyped-def]
    """A pseudo-terminal of 80x24: (its end, ours)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    yield theirs, ours
    os.close(ours)
    os.close(theirs)


def seen(fd: int, words: str, seconds: float = 60.0) -> str:
    """What the terminal shows until `words` appear."""
    text, end = "", time.monotonic() + seconds
    while words not in text and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            text += os.read(fd, 65536).decode(errors="replace")
    assert words in text
    return text


def start(arguments: list[str], fd: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "PYTHONPATH": str(SCRIPT.parent.parent),
    }
    environment.pop("NO_COLOR", None)
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=fd, stdout=fd, stderr=fd, env=environment, start_new_session=True
    )


def test_on_a_real_terminal_keys_work_resizing_works_and_everything_is_put_back(terminal, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    theirs, ours = terminal
    before = termios.tcgetattr(theirs)
    run = start([str(SCRIPT), "0.3", "--steps", "40", "--until", "train", "--folder", str(tmp_path)], theirs)
    try:
        assert "\x1b[?1049h" in seen(ours, "instance loss")
        os.write(ours, b"?")
        seen(ours, "save everything needed")
        os.write(ours, b"x")
        os.write(ours, b"p")
        seen(ours, "paused")
        termios.tcsetwinsize(
            theirs, (48, 160)
        )  # while paused: the run cannot end before the screen has been drawn again
        seen(ours, "of 9.4 GiB")  # the table of phases, which only a wide screen has
        os.write(ours, b"p")
        os.write(ours, b"q")
        assert "\x1b[?1049l" in seen(ours, "checkpoint: step=10")
        assert run.wait(60) == 0
    finally:
        run.kill()
    assert termios.tcgetattr(theirs) == before


BROKEN = """
import time
from trainer.events import Controls, Finished, Notice
from trainer.readers import tui

def frame(state, width, height, view):
    return 1 // 0

def run(controls):
    while not controls.quit:
        yield Notice("waiting")
        time.sleep(0.1)
    yield Notice("left with a key")
    yield Finished("interrupted", 0, 1.0, "runs/x", "bye")

tui.frame = frame
controls = Controls()
tui.show(run(controls), controls, "on")
"""


def test_a_frame_that_cannot_be_drawn_leaves_plain_lines_and_the_keys(terminal) -> None:  # type: ignore[no-untyped-def]
    theirs, ours = terminal
    before = termios.tcgetattr(theirs)
    run = start(["-c", BROKEN], theirs)
    try:
        assert "\x1b[?1049l" in seen(ours, "note: waiting"), "the picture's screen was left first"
        os.write(ours, b"q")
        said = seen(ours, "bye")
        assert "note: left with a key" in said and "could not be drawn (ZeroDivisionError" in said
        assert run.wait(60) == 0
    finally:
        run.kill()
    assert termios.tcgetattr(theirs) == before


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_lost_connection_asks_to_save_and_quit(tmp_path: Path, mode: str) -> None:
    ours, theirs = pty.openpty()
    arguments = [str(SCRIPT), "0.3", "--steps", "40", "--until", "train", "--folder", str(tmp_path), "--mode", mode]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests ignore it, and so would the run
    try:
        run = start(arguments, theirs)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        os.close(theirs)
        seen(ours, "instance")
        run.send_signal(signal.SIGHUP)
        os.close(ours)  # from here on, whatever is written to the terminal fails
        assert run.wait(60) == 0, "the run came to its end instead of dying of its output"
    finally:
        run.kill()
    assert replay(log.read(tmp_path / "run")).step


def test_nohup_is_left_to_ignore_a_lost_connection() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        controls = Controls()
        with interrupts(controls):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert not controls.quit and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_small_adapter_has_a_size() -> None:
    assert [gib(size) for size in (0, 300 * 2**10, 5 * 2**20, 2**30)] == ["0 MiB", "300 KiB", "5 MiB", "1.0 GiB"]


def test_a_curve_of_losses_has_no_room_below_zero() -> None:
    assert limits([0.01, 0.4])[0] == 0.0 and limits([-0.1, 0.4])[0] < -0.1


def test_watching_finds_pictures_of_a_run_that_was_moved(tmp_path: Path) -> None:
    happened = list(events(tmp_path, steps=8))
    (tmp_path / "run").rename(tmp_path / "moved")
    state = replay(watch.placed(happened, tmp_path / "moved"))
    assert all(Path(path).is_file() for sample in state.samples for path in sample.paths)


def test_watch_shows_a_recorded_run_until_one_leaves(terminal, recorded: list[Event], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    moved = [replace(recorded[0], run_dir=str(tmp_path)), *recorded[1:]]  # type: ignore[type-var]
    list(log.record(moved))
    theirs, ours = terminal
    code = f"import sys; from pathlib import Path; from trainer.readers import watch; sys.exit(watch.main(Path({str(tmp_path)!r})))"
    run = start(["-c", code], theirs)
    try:
        seen(ours, "✓ done")
        os.write(ours, b"q")
        seen(ours, "finished: status=done")
        assert run.wait(60) == 0
    finally:
        run.kill()
