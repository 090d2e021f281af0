"""A technique that stops saving bytes fails here, and an exact one that changes the loss."""

import json

import pytest
import torch
from trainer.benchmarks import __main__ as command
from trainer.benchmarks.harness.timing import Options
from trainer.benchmarks.suites import ladder

TINY = Options(tiny=True, repeats=1, warmup=0)


@pytest.fixture(scope="module")
def rungs():
    """The ladder's rows by technique."""
    return {row["technique"]: row for row in ladder.suite(TINY)}


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
    monkeypatch.setattr(ladder, "policies", lambda half, card: [])
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
