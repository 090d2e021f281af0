"""From rows to tables and plots; what stands between two markers is theirs, the rest of a page is not."""

import json

from trainer.benchmarks import report

ORIGIN = {"time": "2026-01-02T00:00:00Z", "gpu": None, "cpu": "a cpu", "threads": 1,
          "versions": {"torch": "9.9"}, "commit": "abc"}  # fmt: skip
CARD = ORIGIN | {"gpu": {"name": "a card", "bytes": 1, "cuda": "1"}, "time": "2025-01-01T00:00:00Z"}


def rung(technique: str, size: int, origin: dict = ORIGIN, **more: object) -> dict:
    return {"suite": "ladder", "model": "sd1", "technique": technique, "peak_allocated_bytes": size,
            "images_per_second": 1.25, "origin": origin} | more  # fmt: skip


def write(folder, suite: str, rows: list[dict]) -> None:
    (folder / f"{suite}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_report_fills_marked_sections_from_rows_and_nothing_else(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before 7\n<!-- bench:ladder:begin -->\nold 12345\n<!-- bench:ladder:end -->\nbetween\n"
        "<!-- bench:peers:begin -->\nkept as it is\n<!-- bench:peers:end -->\nafter\n"
    )
    monkeypatch.setattr(report, "README", readme)
    write(tmp_path, "ladder", [rung("plain", 3 * 2**20), rung("less", 2**20)])
    report.main(["--results", str(tmp_path)])
    text = readme.read_text()
    assert text.startswith("before 7\n<!-- bench:ladder:begin -->\n") and text.endswith("after\n")
    assert "| sd1 | plain | 3.0 | 1.25 |" in text and "12345" not in text
    assert "kept as it is" in text
    assert "a cpu, 1 threads, no GPU" in text and "commit abc" in text
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["readme"] == ["ladder"]
    assert "| sd1 | less | 1.0 | 1.25 |" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_a_marked_section_may_ask_for_the_rows_with_one_value(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:ladder technique=less:begin -->\n<!-- bench:ladder:end -->\n")
    monkeypatch.setattr(report, "README", readme)
    write(tmp_path, "ladder", [rung("plain", 3 * 2**20), rung("less", 2**20)])
    report.main(["--results", str(tmp_path)])
    assert "| sd1 | less |" in readme.read_text() and "plain" not in readme.read_text()


def test_the_report_prefers_cards_then_real_models_then_the_newest_run():
    older = rung("old", 1, CARD)
    newer = rung("new", 1, CARD | {"time": "2025-06-01T00:00:00Z"})
    other = rung("xl", 1, CARD) | {"model": "sdxl"}
    rows = [older, newer, other, rung("cpu", 1), rung("tiny", 1, CARD | {"time": "2027"}, tiny=True)]
    assert [row["technique"] for row in report.latest(rows)] == ["new", "xl"]


def test_a_format_that_was_measured_later_does_not_hide_the_others():
    rows = [
        {"format": name, "rate": "2e-6", "update_error": error, "origin": ORIGIN | {"time": time}}
        for name, error, time in (("fp32", 0.0, "2"), ("24 bits", 0.1, "2"), ("fp32", 0.0, "3"), ("factored", 0.5, "3"))
    ]
    shown = [(row["format"], row["origin"]["time"]) for row in report.latest(rows)]
    assert shown == [("24 bits", "2"), ("fp32", "3"), ("factored", "3")]


def test_the_report_shows_no_times_of_tiny_models():
    section = report.section("ladder", [rung("plain", 2**20, tiny=True)])
    assert "1.25" not in section and "images/s" not in section and "a tiny sd1 model on a cpu" in section


def test_plots_are_drawn_from_rows(tmp_path):
    write(
        tmp_path, "presets", [{"preset": "8gb", "model": "sd1", "budget_bytes": 8, "peak_bytes": 7, "origin": ORIGIN}]
    )
    write(tmp_path, "quality", [{"way": "LoRA", "class_drift": 0.1, "fidelity": 0.5, "origin": ORIGIN}])
    report.main(["--results", str(tmp_path), "--no-readme"])
    assert {path.stem for path in tmp_path.glob("*.png")} == {"presets", "quality"}
