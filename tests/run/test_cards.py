"""The whole job on two processes: what they leave behind is what one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from trainer.__main__ import main
from trainer.machine import launcher
from trainer.out import checkpoint
from trainer.prior.manifest import digest_of as digest

SMALL = (
    "--device cpu --max_train_steps 2 --train_batch_size 1 --gradient_accumulation_steps 2 --no-with_prior_preservation "
    "--num_validation_images 0 --no-watch --dashboard off --formats single_file --cache_dir {0}/cache --output_dir {0}/{1}"
)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "grad_norm" in row]


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def test_two_processes_leave_the_checkpoint_of_one_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = SMALL + " --ema"
    assert main(words.format(tmp_path, "one").split()) == 0
    assert launcher.launch(2, words.format(tmp_path, "two").split()) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert losses(one) == losses(two) and len(losses(two)) == 2
    policies = [json.loads((run / "step-000002/state.json").read_text())["policy"]["shard"] for run in (one, two)]
    assert policies == ["off", "state"]
    for name in ("engine", "random", "ema"):
        assert tensors(one / f"step-000002/{name}.safetensors") == tensors(two / f"step-000002/{name}.safetensors")
    [export] = [path.relative_to(one) for path in (one / "model").glob("*.safetensors")]
    assert tensors(one / export) == tensors(two / export)
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
    words = words.replace("{0}/cache", "{0}/{1}-cache").replace("_steps 2 --train", "_steps 1 --train")
    for name, cards in (("one", 1), ("two", 2)):
        assert launcher.launch(cards, words.format(tmp_path, name).split()) == 0
    folder = {"images": "class_images", "prediction": "predictions"}[by]
    # A file of tensors is compared by what it holds: safetensors writes the words of its header in any order.
    one, two = (
        {
            path.name: tensors(path) if path.suffix == ".safetensors" else digest(path)
            for path in sorted((tmp_path / f"{name}-cache" / folder).rglob("*.*"))
        }
        for name in ("one", "two")
    )
    assert one == two and len(one) >= (7 if by == "images" else 1)


def test_a_card_that_dies_ends_the_run_in_its_name_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = SMALL.replace("_steps 2 --train", "_steps 5 --checkpointing_steps 1 --train")
    one, two = (words.format(tmp_path, name).split() for name in ("one", "two"))
    dying = subprocess.Popen(
        [sys.executable, "-m", "trainer", *two, "--cards", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not checkpoint.found(tmp_path / "two"):
        assert dying.poll() is None
        time.sleep(0.05)
    os.kill(_rank(1, dying.pid), signal.SIGKILL)
    _, said = dying.communicate(timeout=60)
    assert dying.returncode == 2
    assert "card 1 was ended by SIGKILL" in said and "--resume_from_checkpoint latest" in said

    assert main([*two, "--resume_from_checkpoint", "latest"]) == 0  # what two cards began one card ends
    assert main(one) == 0
    for name in ("engine", "random"):
        assert tensors(tmp_path / f"one/step-000005/{name}.safetensors") == tensors(
            tmp_path / f"two/step-000005/{name}.safetensors"
        )


def _rank(rank: int, launcher_pid: int) -> int:
    """The process of card `rank` among the launcher's children."""
    children = Path(f"/proc/{launcher_pid}/task/{launcher_pid}/children").read_text().split()
    [found] = [int(pid) for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()]
    return found


def test_more_cards_than_pictures_in_a_step_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = SMALL.replace("_steps 2 --no", "_steps 1 --no").format(tmp_path, "run")
    assert launcher.launch(2, words.split()) == 2
    assert "1 picture for 2 cards" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
