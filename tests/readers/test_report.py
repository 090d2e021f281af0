"""The report: one file that needs nothing else, complete for a finished run and honest about any other."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_run import events

from trainer.errors import ConfigError
from trainer.events import Event, Exported, Finished, Meters, PhaseEnded, RunStarted, Step
from trainer.readers import log, report
from trainer.readers.view import figures
from trainer.readers.view.page import locate, spread
from trainer.readers.view.state import RunState, replay
from trainer.readers.view.usage import usage

SNAPSHOT = Path(__file__).parent / "snapshots" / "report.txt"
VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """The page as an indented outline: tags, text, and for pictures what they show; checks that tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.lines: list[str] = []
        self.sources: list[str] = []
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]
        if "svg" not in self.open:
            shown = values.get("alt") or values.get("aria-label") or values.get("class") or ""
            self.lines.append("  " * len(self.open) + f"<{tag}> {shown}".rstrip())
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"svg", "style"} & set(self.open):
            self.lines += ["  " * len(self.open) + line.strip() for line in data.strip().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recorded run of 60 steps."""
    folder = tmp_path_factory.mktemp("report")
    list(log.record(events(folder, steps=60)))
    return folder / "run"


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    """Its report."""
    return report.write(run).read_text(encoding="utf-8")


def page(happened: Iterator[Event], folder: Path) -> str:
    list(log.record(happened))
    return report.write(folder / "run").read_text(encoding="utf-8")


def test_the_report_has_the_structure_it_had_when_it_was_looked_at(run: Path, text: str) -> None:
    outline = Outline(text)
    shown = "\n".join(outline.lines).replace(str(run.parent), "FOLDER") + "\n"
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", shown)
    shown = re.sub(r"\d+ settings at their defaults", "N settings at their defaults", shown)
    row = r" *<tr>\n(?: *<td>\n *<span> setting\n.*\n){2} *<td>\n *<span> muted\n *default\n"
    shown = re.sub(f"(?:{row})+", "(the settings)\n", shown)  # whatever is added to them
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(shown, encoding="utf-8")
    assert shown == SNAPSHOT.read_text(encoding="utf-8"), (
        "look at it, then UPDATE_SNAPSHOTS=1 pytest tests/readers/test_report.py"
    )


def test_the_report_needs_nothing_but_itself(text: str) -> None:
    sources = Outline(text).sources
    assert len(sources) > 20 and all(s.startswith(("data:image/webp;base64,", "#")) for s in sources)
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)


def test_plots_take_their_colours_from_the_page(text: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(plots) >= 8
    used = set(re.findall(r"#[0-9a-f]{6}", " ".join(plots)))
    assert used == set(), "a fixed colour would vanish in either light or dark"
    assert all(f"--{name}:" in text for name in re.findall(r"var\(--(\w+)\)", " ".join(plots)))
    assert "<text" in plots[0], "text stays text"


def test_the_same_seed_stands_in_one_row(text: str) -> None:
    rows = [
        re.findall(r'alt="([^"]*)"', row)
        for row in re.findall(r"<tr>.*?</tr>", text)
        if "seed" in row and "<img" in row
    ]
    assert len(rows) == 4
    for row in rows:
        assert len({label.rsplit(", step", 1)[0] for label in row}) == 1
        assert [int(label.rsplit(" ", 1)[1]) for label in row] == [15, 30, 45, 60]


def test_the_runs_way_is_drawn_where_a_judge_read_both_ends_of_it() -> None:
    readings = [{"subject": 0.1 * step, "unrelated drift": 0.05 * step} for step in range(3)]
    both = report.meters(replay(Meters(step, values) for step, values in enumerate(readings)), Path())
    one = report.meters(replay(Meters(step, {"subject": 0.1 * step}) for step in range(3)), Path())
    assert "drift of unrelated prompts" in both and "step 2" in both
    assert "drift of unrelated prompts" not in one


def test_settings_name_their_origin_and_defaults_are_folded_away(text: str) -> None:
    chosen, folded = text.split('id="settings"')[1].split("<details>")
    assert "train.learning_rate" in chosen and "2e-06" in chosen and "family default" in chosen
    assert "train.adam_beta1" in folded and "train.adam_beta1" not in chosen


def test_an_interrupted_and_a_broken_off_run_have_reports_too(tmp_path: Path) -> None:
    happened = list(events(tmp_path, steps=8, status="interrupted"))
    text = page(iter(happened), tmp_path)
    assert "interrupted" in text and "--resume_from_checkpoint latest" in text and "Instance loss" in text
    killed = replay(happened[: next(i for i, e in enumerate(happened) if isinstance(e, Step) and e.step == 5)])
    assert "running or broken off" in report.heading(killed, tmp_path / "run")


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    state = replay(events(tmp_path, steps=8, status="failed"))
    assert "loss is nan at step 210" in report.heading(state, tmp_path / "run")


def test_a_run_on_a_cpu_without_prior_has_no_empty_sections(tmp_path: Path) -> None:
    text = page(events(tmp_path, steps=8, with_prior=False, gpu=False), tmp_path)
    assert "Class loss" not in text and "Class images" not in text and "VRAM by phase" not in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_a_log_with_nothing_but_its_first_event_is_enough(tmp_path: Path) -> None:
    started = next(e for e in events(tmp_path, steps=8) if isinstance(e, RunStarted))
    assert "a photo of sks dog" in page(iter([started]), tmp_path)


def test_a_moved_run_still_finds_its_pictures(tmp_path: Path) -> None:
    state = replay(events(tmp_path, steps=8))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "photos")
    samples = report.samples(state, tmp_path / "elsewhere")
    assert samples.count("<img") == 16 and "gone" not in samples
    photos = report.photos(state, tmp_path / "elsewhere")
    assert photos.count('class="gone"') == 5, "photos that are gone leave a gap with their name"


def test_class_images_are_found_where_their_phase_left_them(tmp_path: Path) -> None:
    state = replay(
        replace(e, folder=str(tmp_path / "class")) if isinstance(e, PhaseEnded) and e.phase == "class images" else e
        for e in events(tmp_path, steps=8)
    )
    assert state.started is not None
    config = {**state.started.config, "prior": {**state.started.config["prior"], "class_data_dir": None}}
    text = report.photos(replace(state, started=replace(state.started, config=config)), tmp_path / "run")
    assert "Class images" in text and "007.png" in text


def test_what_a_person_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    state = replay(events(tmp_path, steps=8))
    assert state.started is not None and state.photos is not None
    evil = "<script>alert(1)</script>"
    config = {**state.started.config, "data": {**state.started.config["data"], "instance_prompt": evil}}
    state = replace(
        state,
        started=replace(state.started, config=config, model=evil, provenance={"data.instance_prompt": evil}),
        photos=replace(state.photos, summary=evil, problems=[evil]),
        samples=tuple(replace(s, prompts=[evil] * 4) for s in state.samples),
    )
    quiet = [
        part for part in report.PARTS if part not in (report.training, report.meters, report.memory)
    ]  # no words there
    text = "".join(part(state, tmp_path / "run") for part in quiet)
    assert "<script>" not in text and text.count("&lt;script&gt;") > 6


def test_a_report_is_replaced_in_one_go_and_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(run) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert not list(run.glob("*.part"))
    with pytest.raises(ConfigError):
        report.main(run.parent)


def test_time_between_a_break_and_its_resumption_is_not_drawn(tmp_path: Path) -> None:
    happened = list(events(tmp_path, steps=40))
    end = next(i for i, e in enumerate(happened) if isinstance(e, Step) and e.step == 20)
    later = [replace(e, time=e.time + 86400) for e in (happened[0], *happened[end + 1 :])]
    state = replay([*happened[:end], *later])
    assert state.clock(state.time) < 1000
    assert len(state.gaps) == 1 and "minutes" in figures.memory(state)


def test_long_curves_keep_their_spikes() -> None:
    y = [0.0] * 10_000
    y[4321] = 9.0
    x, thinned = figures.thin(range(10_000), y)
    assert len(x) <= 2 * figures.POINTS and max(thinned) == 9.0 and x[thinned.index(9.0)] == 4321


def test_every_export_format_says_how_to_use_it() -> None:
    def said(format: str, path: str) -> str:
        return usage(Exported(path, format, "fp16", 1, 0.0, "as you like"), "some/model", "a photo of sks dog")

    for format in ("diffusers", "lora diffusers"):
        code = said(format, "runs/a/model")
        compile(code, format, "exec")
        assert "runs/a/model" in code
    assert "models/Stable-diffusion" in said("single file", "a.safetensors") and "models/checkpoints" in said(
        "single file", "a"
    )
    assert "<lora:a:1>" in said("lora kohya", "b/a.safetensors")
    assert said("another", "a") == "as you like"


@pytest.mark.parametrize("prompt", ["a {photo} of hta dog", "{}", 'it\'s "hta" {0!r}'])
def test_braces_and_quotes_in_a_prompt_are_drawn_as_they_stand(prompt: str) -> None:
    for format in ("diffusers", "lora diffusers", "single file", "lora kohya"):
        text = usage(Exported("runs/a {b}", format, "fp16", 1, 0.0, ""), "some/model", prompt)
        assert repr(prompt) in text or prompt in text
        if "diffusers" in format:
            compile(text, format, "exec")


def test_what_is_shown_is_spread_evenly_with_both_ends() -> None:
    assert spread(3, 12) == [0, 1, 2]
    assert spread(100, 5) == [0, 25, 50, 74, 99]


def test_a_file_outside_the_run_is_not_guessed(tmp_path: Path) -> None:
    assert locate(str(tmp_path / "none.png"), RunState(), tmp_path) is None


def test_an_empty_state_has_a_page(tmp_path: Path) -> None:
    Outline(report.render(replay([Finished("failed", 0, 1.0, str(tmp_path), "", "nothing began")]), tmp_path))
