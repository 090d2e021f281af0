"""What test_two_ranks.py lets two processes do: train a small model each on its share, and say where it differs from one
process that had all of it. Run by torch's launcher; the lead prints one JSON line a case."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from policies import LOW
from small_unet import Model, batches

from trainer.machine.team import ALONE, Team, join
from trainer.policy import Policy
from trainer.step.engine import Engine

STEPS, COUNT = 6, 2
CASES = {
    "plain": Policy(),
    "clipped exactly": Policy(max_grad_norm=1e-3),
    "clipped by the previous norm": Policy(max_grad_norm=1e-3, clipping="previous"),
    "not clipped": Policy(max_grad_norm=0.0),
    "recomputed and streamed": Policy(checkpointing="blocks", stream="all", boundaries="ram", gradients="ram"),
    "low bits": replace(LOW, moments="8bit"),
    "stochastic rounding": replace(LOW, weights="16bit_sr"),
    "torch's AdamW": Policy(optimizer="torch_adamw"),
    "text encoder too": Policy(),
}


def train(policy: Policy, team: Team, text: bool, broken: int | None = None) -> tuple[dict, list[float], Engine]:
    """Six steps of two micro-batches. `broken`: the step whose loss is made infinite, on the last rank's micro-batch."""
    torch.manual_seed(0)
    engine, norms = Engine(Model().units(text), policy, "cpu", team), []
    for step in range(STEPS):
        data = batches(step, COUNT, text)[team.rank :: team.size]

        def loss(prediction: torch.Tensor, i: int, step: int = step, data: list = data) -> torch.Tensor:
            value = (prediction.float() - data[i][1]).pow(2).mean() / COUNT
            last = team.rank == team.size - 1 and i == len(data) - 1
            return value * float("inf") if step == broken and last else value

        norms.append(float(engine.step([values for values, _ in data], loss, 1e-2).grad_norm))
    return dict(engine.state_dict()), norms, engine


def main() -> None:
    team, _ = join(cpu=True)
    cases = [(name, policy, "text" in name and "encoder" in name, None) for name, policy in CASES.items()]
    half = Policy(weights="24bit", moments="8bit", compute=torch.float16)
    cases += [("fp16 with a step that overflows", half, False, 2)]
    cases += [("fp16 in one pass with a step that overflows", replace(half, max_grad_norm=0.0), False, 2)]
    for name, policy, text, broken in cases:
        (ours, norms, _), (theirs, expected, _) = (train(policy, t, text, broken) for t in (team, ALONE))
        apart = [key for key in theirs if not torch.equal(ours[key], theirs[key]) and not ours[key].isnan().all()]
        everywhere = team.gather((apart, [n for n in norms if n == n]))
        if team.leads:
            same = all(told == everywhere[0] for told in everywhere)
            print(json.dumps({"case": name, "apart": apart[:3], "same everywhere": same, "norms": norms == expected or
                              [n for n in norms if n == n] == [n for n in expected if n == n]}), flush=True)  # fmt: skip
    sides = team.any(team.rank == 1, False), team.tell(team.rank), team.gather(team.rank)
    if team.leads:
        print(json.dumps({"case": "words", "any": sides[0], "tell": sides[1], "gather": sides[2]}), flush=True)
    team.wait()


if __name__ == "__main__":
    assert os.environ.get("WORLD_SIZE") == "2", "run by torch.distributed.run with two processes"
    main()
