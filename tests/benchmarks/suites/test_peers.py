"""Other trainers run beside ours in their own folder and with their own Python; what they cannot do is refused."""

import json
import os
import sys
from dataclasses import replace

import pytest
from trainer.benchmarks.harness import jobs, turns
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import peers

from trainer.errors import ConfigError

TINY = Options(tiny=True, repeats=1, warmup=0)


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


def test_speed_is_the_difference_between_a_long_and_a_short_job(tmp_path, monkeypatch):
    """A job whose start takes 3 s and each step 0.05 s, whatever this machine does beside it."""
    peer = peers.Peer(lambda made, run, steps: [sys.executable, "-S", "-c", "import time; time.sleep(0.3)", steps])
    true = jobs.run

    def at_a_known_speed(command, *rest, **more):
        return replace(true(command, *rest, **more), seconds=3 + 0.05 * command[-1])

    monkeypatch.setattr(jobs, "run", at_a_known_speed)
    row = peers.measure(peer, None, tmp_path / "runs", 4, 24, 2)
    assert row["exit"] == 0 and row["steps"] == 24 and row["peak_bytes"] > 0
    assert row["images_per_second"] == pytest.approx(2 / 0.05) and row["start_to_finish_seconds"] == pytest.approx(4.2)


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


@pytest.fixture
def diffusers(tmp_path):
    """A checkout of diffusers whose script shows the progress of steps that do nothing, and keeps its line."""
    script = tmp_path / "checkout/examples/dreambooth/train_dreambooth.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT)
    return tmp_path / "checkout"


SCRIPT = """
import json, pathlib, sys, time
words = sys.argv[1:]
pathlib.Path("line.json").write_text(json.dumps(words))
total = words[words.index("--max_train_steps") + 1]
for step in range(1, int(total) + 1):
    time.sleep(0.05)
    print(f"\\rSteps: {step}/{total} [00:00<00:00]", end="", file=sys.stderr, flush=True)
"""


def test_on_the_built_in_model_both_get_the_same_line_and_ours_the_formats_of_the_script(diffusers, monkeypatch):
    seen = []
    true = turns.take
    monkeypatch.setattr(turns, "take", lambda runners, *rest: seen.extend(runners) or true(runners, *rest))
    options = Options("demo", tiny=True, words=(f"diffusers={diffusers}",))
    theirs, ours = list(peers.suite(options))
    assert (theirs["trainer"], ours["trainer"]) == ("diffusers", "ours") and len(ours["rounds"]) == 2
    assert ours["speed_against_above"] == pytest.approx(theirs["seconds"] / ours["seconds"], rel=0.02)
    line = json.loads((diffusers / "line.json").read_text())
    assert "--gradient_checkpointing" not in line and "--use_8bit_adam" not in line
    words = [str(word) for word in seen[1].command]
    pasted = words[words.index("--pretrained_model_name_or_path") :]
    assert [word.replace("/ours", "/theirs") for word in pasted[: len(line)]] == line
    assert pasted[len(line) :] == [str(word) for word in peers.SAME]


def test_the_built_in_model_is_compared_with_diffusers_alone_and_a_broken_script_is_a_row(diffusers):
    with pytest.raises(ConfigError, match="diffusers' script alone"):
        list(peers.suite(Options("demo", tiny=True)))
    (diffusers / "examples/dreambooth/train_dreambooth.py").write_text("raise SystemExit('no torchvision')")
    (row,) = peers.suite(Options("demo", tiny=True, words=(f"diffusers={diffusers}",)))
    assert row["trainer"] == "diffusers" and row["exit"] == 1 and "no torchvision" in row["failed"]


@pytest.mark.skipif("DIFFUSERS_CHECKOUT" not in os.environ, reason="DIFFUSERS_CHECKOUT names no checkout of diffusers")
def test_diffusers_own_script_takes_turns_with_ours():
    word = f"diffusers={os.environ['DIFFUSERS_CHECKOUT']}"  # with ,python=FILE where it needs its own
    theirs, ours = peers.suite(Options("demo", tiny=True, words=(word,)))
    assert "failed" not in theirs and theirs["seconds"] > 0 and ours["seconds"] > 0
