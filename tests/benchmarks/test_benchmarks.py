"""Benchmarks are tested by their tiny forms: every suite runs, its rows keep their promises, and a technique that stops
saving bytes fails here."""

import contextlib
import io
import json
import sys
from importlib import import_module

import psutil
import pytest
import torch
from safetensors import safe_open
from trainer.benchmarks import __main__ as command
from trainer.benchmarks import (
    fidelity,
    harness,
    jobs,
    kernels,
    ladder,
    peers,
    planner,
    presets,
    profile,
    report,
    scaling,
    work,
)
from trainer.benchmarks.harness import Options

from trainer.errors import ConfigError

TINY = Options(tiny=True, repeats=1, warmup=0)


@pytest.fixture(scope="module")
def rungs():
    """The ladder's rows by technique."""
    return {row["technique"]: row for row in ladder.suite(TINY)}


def test_every_suite_on_the_help_page_takes_options_and_gives_rows():
    for name in command.SUITES:
        assert list(import_module(f"trainer.benchmarks.{name}").suite.__annotations__) == ["options", "return"], name


def bytes_of(rungs: dict[str, dict], technique: str) -> int:
    return rungs[technique]["live_peak_bytes"]


@pytest.mark.parametrize(
    "smaller,larger",
    [
        ("+ mixed precision", "plain fp32 AdamW, diffusers"),
        ("+ cached latents and text", "+ mixed precision"),
        ("+ 8-bit AdamW (bitsandbytes)", "+ cached latents and text"),
        ("+ fused attention", "+ 8-bit AdamW (bitsandbytes)"),
        ("+ update inside backward", "+ fused attention"),
        ("+ 24-bit weights", "+ exact clipping, gradients in RAM"),
        ("+ recompute kernels", "+ 24-bit weights"),
        ("+ block checkpointing", "+ recompute kernels"),
        ("+ 4-bit moments", "+ block checkpointing"),
        ("8-bit, state streamed", "+ block checkpointing"),
        ("+ everything streamed", "8-bit, state streamed"),
    ],
)
def test_each_technique_saves_bytes_against_the_ladder_without_it(rungs, smaller, larger):
    assert bytes_of(rungs, smaller) < bytes_of(rungs, larger)


def test_the_whole_ladder_saves_more_than_four_fifths(rungs):
    assert bytes_of(rungs, "+ everything streamed") < 0.2 * bytes_of(rungs, "plain fp32 AdamW, diffusers")


def test_exact_techniques_on_the_ladder_do_not_change_the_loss(rungs):
    exact = ("+ selective checkpointing", "+ block checkpointing", "8-bit, state streamed", "+ everything streamed")
    losses = {rungs[name]["loss"] for name in ("+ recompute kernels", *exact, "+ boundaries in RAM")}
    assert len(losses) == 1


def test_ladder_rows_have_their_columns(rungs):
    assert len(rungs) == len(ladder.recipes(None)) + len(ladder.policies(None))
    columns = {"technique", "model", "seconds", "spread", "images_per_second", "loss", "steps", "live_peak_bytes"}
    for row in rungs.values():
        assert columns <= row.keys()
        assert row["seconds"] > 0 and row["steps"] == 2 and row["peak_rss_bytes"] > row["live_peak_bytes"]


def test_a_rung_that_fails_loses_only_itself_and_the_command_says_so(monkeypatch, capsys):
    names = [("plain", ladder.baseline.Recipe()), ("next", ladder.baseline.Recipe(cached=True))]
    monkeypatch.setattr(ladder, "recipes", lambda half: names)
    monkeypatch.setattr(ladder, "policies", lambda half: [])
    true = ladder._baseline

    def broken(options, recipe):
        if not recipe.cached:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.\nmore")
        return true(options, recipe)

    monkeypatch.setattr(ladder, "_baseline", broken)
    assert command.main(["ladder", "--tiny", "--repeats", "1", "--json"]) == 1
    failed, well = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert failed["failed"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 80 GiB."
    assert well["live_peak_bytes"] > 0 and "bytes_against_above" not in well


def test_fidelity_names_each_format_with_its_error(monkeypatch):
    monkeypatch.setattr(fidelity, "STEPS", 8)
    rows = list(fidelity.suite(TINY))
    assert {row["part"] for row in rows} == {"format", "optimizer"}
    for row in rows:
        assert {"what", "error", "kept", "lr", "steps", "weights", "bytes_per_weight"} <= row.keys()


def test_kernels_stand_beside_their_rivals_and_the_copy():
    rows = list(kernels.suite(TINY))
    assert rows[0]["kernel"] == "copy"
    rivals = {row["who"]: row["bytes_per_weight"] for row in rows if row["kernel"].startswith("adamw")}
    assert rivals["ours"] < 0.6 * rivals["bitsandbytes 8-bit, fp32 weights"]
    kept = {(row["kernel"], row["who"]): row["kept_bytes"] for row in rows if "kept_bytes" in row}
    assert all(
        size < kept[kernel, "eager"] for (kernel, who), size in kept.items() if who == "ours" and "norm+" in kernel
    )


def test_plans_of_a_tiny_step_stand_beside_the_allocator_log_and_simulated_ones_say_that_they_are(monkeypatch):
    monkeypatch.setattr(planner, "CASES", {name: planner.CASES[name] for name in ("all kept", "all streamed")})
    *measured, kept, streamed = planner.suite(Options(tiny=True, words=("simulate",)))
    assert len(measured) == 2
    assert all(row["measured_bytes"] > 0 and abs(row["off_percent"]) <= 1 for row in measured)
    assert "simulated" in kept["case"] and "measured_bytes" not in kept
    assert streamed["planned_bytes"] < 0.5 * kept["planned_bytes"]
    assert streamed["planned_host_bytes"] > kept["planned_host_bytes"]


def test_scaling_grows_with_batch_and_resolution():
    rows = [scaling.measure(TINY, scaling.Policy(recompute_kernels=True), 64, pairs) for pairs in (1, 2)]
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[0]["live_peak_bytes"] < rows[1]["live_peak_bytes"]


def test_the_profile_accounts_for_the_step():
    rows = list(profile.suite(TINY))
    step, busy, waiting, *operators = rows
    assert step["tflop"] > 0 and step["operators"] > 100 and 0 < step["achieved"] < 1.5
    assert busy["share"] + waiting["share"] == pytest.approx(1, abs=0.05) or busy["share"] > 1
    assert len(operators) == profile.TOP and operators[0]["seconds"] >= operators[-1]["seconds"]


def test_kernels_that_overlap_on_several_streams_count_once():
    assert profile.covered([(0, 4), (2, 3), (10, 12), (11, 15)]) == 9


def test_a_preset_goes_through_all_phases_of_a_run():
    (row,) = presets.suite(Options(preset="24gb", tiny=True))
    assert row["exit"] == 0, row
    assert row["status"] == "done"
    assert {"images_per_second", "spread", "peak_bytes"} <= row.keys()
    assert row["train_bytes"] > 0 and row["export_bytes"] > 0


def test_the_built_in_baseline_needs_no_checkout():
    assert list(peers.peers(TINY)) == ["ours", "plain diffusers"]


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like a checkout of OneTrainer; its script says what it was called with and fails."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/train.py").write_text("import sys, os\nprint(sys.executable, os.getcwd())\nsys.exit(3)\n")
    return tmp_path


def test_a_checkout_runs_in_its_own_folder_with_its_own_python_and_its_failure_is_a_row(checkout, tmp_path):
    python = tmp_path / "own-python"
    python.symlink_to(sys.executable)
    options = Options(tiny=True, words=(f"onetrainer={checkout},python={python}",))
    peer = peers.peers(options)["onetrainer"]
    made = jobs.Material(tmp_path, tmp_path, tmp_path, tmp_path, 64)
    row = peers.measure(peer, made, tmp_path / "runs", 4, 8, 1)
    assert row == {"exit": 3, "failed": f"{python} {checkout}"}


def test_speed_is_the_difference_between_a_long_and_a_short_job(tmp_path):
    code = "import time, sys; time.sleep(0.2 + 0.05 * int(sys.argv[1]))"
    peer = peers.Peer(lambda made, run, steps: [sys.executable, "-S", "-c", code, steps])
    row = peers.measure(peer, None, tmp_path / "runs", 4, 24, 2)
    assert row["exit"] == 0 and row["steps"] == 24 and row["peak_bytes"] > 0
    assert 0.5 * 40 < row["images_per_second"] <= 2 * 40  # 2 images in 0.05 s, on a machine that does other things, too


@pytest.mark.parametrize(
    "words,fix",
    [
        (["ladder", "--model", "sd9"], "Choose sd1"),
        (["ladder", "--preset", "12gb"], "Leave --preset out"),
        (["presets", "--preset", "9gb"], "Choose one of 4gb, 6gb"),
        (["ladder", "word"], "Leave them out"),
        (["kernels", "--repeats", "0"], "--repeats 1"),
        (["peers", "--tiny", "kohyaa=/x"], "NAME is one of diffusers, kohya, onetrainer"),
        (["peers", "--tiny", "diffusers=/nowhere"], "root folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_fix_before_anything_is_built(words, fix, capsys):
    assert command.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and fix in said.err


def test_a_peer_that_cannot_do_the_job_is_refused_with_the_reason(checkout):
    for script in ("train_db.py", "examples/dreambooth/train_dreambooth.py"):
        (checkout / script).parent.mkdir(parents=True, exist_ok=True)
        (checkout / script).touch()
    with pytest.raises(ConfigError, match="original_unet"):
        peers.peers(Options(tiny=True, words=(f"kohya={checkout}",)))
    with pytest.raises(ConfigError, match="only LoRA"):
        peers.peers(Options("sdxl", words=(f"diffusers={checkout}",)))
    with pytest.raises(ConfigError, match="names no Python"):
        peers.peers(Options(words=(f"diffusers={checkout},python=/nowhere",)))


def test_a_job_that_takes_too_long_is_ended_with_everything_it_started(tmp_path):
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    ran = jobs.run([sys.executable, "-S", "-c", code], timeout=3)
    assert ran.code == -1 and "stopped after 3 s" in ran.tail and ran.seconds < 30
    child = int(ran.tail.split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_random_weights_are_made_only_for_the_modules_that_run_and_no_two_rows_are_alike():
    made = work.family("sd1").tiny()
    source = torch.randn(101)
    work.fill(made.unet, source)
    weight = made.unet.mid_block.resnets[0].conv1.weight.flatten(1)
    assert len(weight.unique(dim=0)) == len(weight) and torch.isin(weight, source).all()
    assert (made.unet.conv_norm_out.weight == 1).all()


def test_the_materials_model_is_spelled_as_the_hub_spells_it(tmp_path):
    made = jobs.material(TINY, tmp_path)
    with safe_open(made.model / "text_encoder/model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    assert (made.model / "tokenizer/vocab.json").is_file() and (made.model / "tokenizer/merges.txt").is_file()
    assert len(list(made.photos.iterdir())) == jobs.PHOTOS


def run(*words: str) -> list[str]:
    """The lines that the command prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert command.main([*words]) == 0
    return said.getvalue().splitlines()


def test_the_last_line_is_one_json_document_and_rows_are_appended_with_their_origin(tmp_path):
    for _ in range(2):
        lines = run("kernels", "--tiny", "--repeats", "1", "--out", str(tmp_path))
    document = json.loads(lines[-1])
    written = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert len(lines) > 3 and document["suite"] == "kernels"
    assert len(written) == 2 * len(document["rows"])
    for row in written:
        assert row["origin"]["versions"]["torch"] and row["origin"]["cpu"]
        assert {"time", "gpu", "commit", "threads"} <= row["origin"].keys()


def test_tiny_rows_are_written_nowhere_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(kernels, "suite", lambda options: iter([{"kernel": "copy"}]))
    assert len(run("kernels", "--tiny", "--json")) == 1
    assert not list(tmp_path.iterdir())


def test_words_may_stand_behind_options(monkeypatch):
    seen = []
    monkeypatch.setattr(peers, "suite", lambda options: seen.append(options) or iter(()))
    run("peers", "--model", "sd15", "--tiny", "diffusers=/somewhere")
    assert seen[0].words == ("diffusers=/somewhere",) and seen[0].model == "sd1"


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


def test_the_report_prefers_cards_then_real_models_then_the_newest_run():
    older = rung("old", 1, CARD)
    newer = rung("new", 1, CARD | {"time": "2025-06-01T00:00:00Z"})
    other = rung("xl", 1, CARD) | {"model": "sdxl"}
    rows = [older, newer, other, rung("cpu", 1), rung("tiny", 1, CARD | {"time": "2027"}, tiny=True)]
    assert [row["technique"] for row in report.latest(rows)] == ["new", "xl"]


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
