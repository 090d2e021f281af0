"""The whole job on two processes: what they leave behind is what one leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import kills
import pytest
import tiny_run

from trainer.__main__ import main
from trainer.machine import launcher
from trainer.out import checkpoint
from trainer.prior.manifest import digest_of as digest

SMALL = (
    "--device cpu --max_train_steps 2 --train_batch_size 1 --gradient_accumulation_steps 2 --no-with_prior_preservation "
    "--num_validation_images 0 --no-watch --dashboard off --formats single_file --cache_dir {0}/cache --output_dir {0}/{1}"
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "grad_norm" in row]


def test_two_processes_leave_the_checkpoint_of_one_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = SMALL + " --ema"
    assert main(words.format(tmp_path, "one").split()) == 0
    assert launcher.launch(2, words.format(tmp_path, "two").split()) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses(one) == losses(two) and len(losses(two)) == 2
    begun = [json.loads((run / "log.jsonl").read_text().splitlines()[0]) for run in (one, two)]
    assert [row["device"] for row in begun] == ["CPU (1 threads)", "2 x CPU (1 threads)"]
    policies = [json.loads((run / "step-000002/state.json").read_text())["policy"]["shard"] for run in (one, two)]
    assert policies == ["off", "state"]
    for name in ("engine", "random", "ema"):
        assert kills.tensors(one / f"step-000002/{name}.safetensors") == kills.tensors(
            two / f"step-000002/{name}.safetensors"
        )
    [export] = [path.relative_to(one) for path in (one / "model").glob("*.safetensors")]
    assert kills.tensors(one / export) == kills.tensors(two / export)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    decks = [json.loads((run / "step-000002/state.json").read_text())["batches"] for run in (one, two)]
    assert decks[0] == decks[1]


@pytest.mark.parametrize("by", ["images", "prediction"])
def test_two_processes_draw_the_class_of_one_to_the_bit(
    tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums are cut by threads: one process with two threads and two processes with one each differ in the last bit.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = SMALL.replace("--no-with_prior_preservation", f"--by {by} --num_class_images 6 --sample_steps 2")
    words = words.replace("{0}/cache", "{0}/{1}-cache")
    for name, cards, shard in (("one", 1, "off"), ("two", 2, "state"), ("replicated", 2, "off")):
        assert launcher.launch(cards, [*words.format(tmp_path, name).split(), "--shard", shard]) == 0
    folder = {"images": "class_images", "prediction": "predictions"}[by]
    # A file of tensors is compared by what it holds: safetensors writes the words of its header in any order.
    one, two = (
        {
            path.name: kills.tensors(path) if path.suffix == ".safetensors" else digest(path)
            for path in sorted((tmp_path / f"{name}-cache" / folder).rglob("*.*"))
        }
        for name in ("one", "two")
    )
    assert one == two and len(one) >= (7 if by == "images" else 1)
    # a photo on one card and its class half on the other: sums of the two, and products over one row instead of two
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
    assert kills.same(tmp_path / "two/step-000002", tmp_path / "replicated/step-000002")


def test_cards_that_die_end_the_run_in_their_name_and_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = SMALL.replace("_steps 2 --train", "_steps 6 --checkpointing_steps 1 --train")
    one, two = (words.format(tmp_path, name).split() for name in ("one", "two"))
    again = [*two, "--resume_from_checkpoint", "latest"]
    for line, rank, saved in ((two, 1, 1), (again, 0, 3)):  # another than the first dies, and then the first
        begun = kills.start(line)
        kills.wait_for(begun, lambda saved=saved: len(checkpoint.found(tmp_path / "two")) >= saved)
        os.kill(kills.rank(rank, begun.pid), signal.SIGKILL)
        _, said = begun.communicate(timeout=60)
        assert begun.returncode == 2
        assert f"card {rank} was ended by SIGKILL" in said and "--resume_from_checkpoint latest" in said
        assert "a fault of this program" not in said

    assert main(again) == 0  # what two cards began one card ends
    assert main(one) == 0
    assert kills.same(tmp_path / "one/step-000006", tmp_path / "two/step-000006")


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_launcher_that_is_asked_to_stop_saves_once(
    tmp_path: Path, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.signal(
        asked, signal.SIG_DFL
    )  # a shell has its background jobs ignore SIGINT, and these would inherit that
    begun = kills.start(SMALL.replace("_steps 2 --train", "_steps 300 --train").format(tmp_path, "run").split())
    signal.signal(asked, before)
    log = tmp_path / "run" / "log.jsonl"
    kills.wait_for(begun, lambda: log.is_file() and '"Step"' in log.read_text())
    begun.send_signal(asked)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode == 130 and "Traceback" not in said and "exitcode" not in said
    assert len(checkpoint.found(tmp_path / "run")) == 1
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "interrupted"


def test_more_cards_than_pictures_in_a_step_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = SMALL.replace("_steps 2 --no", "_steps 1 --no").format(tmp_path, "run")
    assert launcher.launch(2, words.split()) == 2
    assert "1 picture for 2 cards" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_process_draws_however_many_were_started(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quick = ("--device", "cpu", "--dashboard", "off", "--max_train_steps", 1)
    assert main(tiny_run.words(place, *quick, run="drawn-from")) == 0
    line = ["sample", str(place / "drawn-from"), "--device", "cpu", "--output_dir"]
    assert main([*line, str(tmp_path / "one")]) == 0
    done = subprocess.run([*TORCHRUN, *line, str(tmp_path / "two")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\npictures ") == 1
    assert done.stderr.count("note: `sample` runs in one process") == 1
    one, two = (
        {path.name: digest(path) for path in (tmp_path / name).iterdir() if path.suffix == ".png"}
        for name in ("one", "two")
    )
    assert one == two and one


def test_what_only_says_something_says_it_once() -> None:
    words = ["explain", "checkpointing"]
    done = subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, timeout=120)
    alone = subprocess.run([sys.executable, "-m", "trainer", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout != ""


def test_a_launcher_that_is_killed_takes_its_processes_along_and_the_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = f"--model {place}/sd1 --instance_data_dir {place}/photos --class_name dog --resolution 64 "
    words = (model + SMALL.replace("_steps 2 --train", "_steps 9999 --train")).format(tmp_path, "run").split()
    begun = subprocess.Popen([*TORCHRUN, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = tmp_path / "run" / "log.jsonl"
    kills.wait_for(begun, lambda: log.is_file() and '"Step"' in log.read_text())
    said = killed(begun, kills.ranks(begun.pid).values())
    assert "the launcher has ended, so the run saves and ends" in said and "Traceback" not in said
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "interrupted"
    [point] = checkpoint.found(tmp_path / "run")
    one_more = str(int(point.name.removeprefix("step-")) + 1)
    words[words.index("9999")] = one_more
    assert main([*words, "--resume_from_checkpoint", "latest"]) == 0


def test_a_process_that_waits_for_the_others_ends_with_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two, whose second never comes, under a shell that is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**told, "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    line = [sys.executable, "-m", "trainer", *SMALL.format(tmp_path, "run").split()]
    begun = subprocess.Popen(
        ["sh", "-c", '"$@" & wait', "sh", *line], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    kills.wait_for(begun, lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    said = killed(begun, kills.ranks(begun.pid).values())
    assert "card 0 ends; it had not met the others yet" in said and not (tmp_path / "run").exists()


def killed(launcher: subprocess.Popen[str], cards: Iterable[int]) -> str:
    """What was said around the SIGKILL of a launcher, whose processes are `cards`; its stderr is open until all have ended."""
    cards = list(cards)
    launcher.kill()
    try:
        return launcher.communicate(timeout=20)[1]
    except subprocess.TimeoutExpired:
        for card in cards:
            with suppress(ProcessLookupError):
                os.kill(card, signal.SIGKILL)
        pytest.fail("they went on without it")
