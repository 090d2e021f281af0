"""Two processes with one micro-batch each learn what one process with both learns, to the bit, whether each has all of the
optimizer state or a slice of it."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")
CASES = [
    "plain",
    "clipped exactly",
    "clipped by the previous norm",
    "not clipped",
    "recomputed and streamed",
    "low bits",
    "stochastic rounding",
    "text encoder too",
    "four micro-batches",
    "held to the base model",
    "LoRA",
    "fp16 with a step that overflows",
    "fp16 in one pass with a step that overflows",
    "fp16 whose updates wait, with a step that overflows",
]


@cache
def told() -> dict[str, dict]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["case"]: row for row in rows}


@pytest.mark.parametrize("case", [*CASES, "torch's AdamW", *(f"{case}, shared" for case in CASES)])
def test_two_ranks_hold_the_same_bits_as_one_with_all_micro_batches(case):
    assert told()[case]["apart"] == []
    assert told()[case]["norms"]
    assert told()[case]["same everywhere"]


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_share_the_state_have_about_half_of_it_each(case):
    here, alone = told()[f"{case}, shared"]["state"]
    assert 0.5 * alone <= here < 0.53 * alone
    assert told()[case]["state"] == [alone, alone]


def test_a_run_goes_on_to_the_same_bits_with_another_number_of_ranks():
    assert told()["resumed"]["apart"] == []


def test_words_of_control_reach_everybody():
    row = told()["words"]
    assert (row["any"], row["tell"], row["gather"]) == ([True, False], 0, [0, 1])
