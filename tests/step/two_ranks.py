"""What test_two_ranks.py lets two processes do: train a small model each on its share, and say where it differs from one
process that had all of it. Run by torch's launcher; the lead prints one JSON line a case."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from policies import LOW
from small_unet import Model, batches

from trainer.machine.team import ALONE, Team, join
from trainer.models import SD1, adapters
from trainer.policy import AdamHyper, Policy
from trainer.settings.config import Lora
from trainer.step import outside
from trainer.step.ema import Average
from trainer.step.engine import Engine
from trainer.step.ranks import share

STEPS = 4
HALF = Policy(weights="24bit", moments="8bit", compute=torch.float16)


@dataclass(frozen=True)
class Case:
    """broken: the step whose loss is made infinite, on the last rank's last micro-batch."""

    policy: Policy
    text: bool = False
    broken: int | None = None
    count: int = 2
    lora: bool = False
    ema: bool = False


CASES = {
    "plain": Case(Policy()),
    "clipped exactly": Case(Policy(max_grad_norm=1e-3), ema=True),
    "clipped by the previous norm": Case(Policy(max_grad_norm=1e-3, clipping="previous")),
    "not clipped": Case(Policy(max_grad_norm=0.0)),
    "recomputed and streamed": Case(Policy(checkpointing="blocks", stream="all", boundaries="ram", gradients="ram")),
    "low bits": Case(replace(LOW, moments="8bit"), ema=True),
    "stochastic rounding": Case(replace(LOW, weights="16bit_sr", moments="4bit")),
    "torch's AdamW": Case(Policy(optimizer="torch_adamw")),
    "text encoder too": Case(Policy(), text=True),
    "four micro-batches": Case(replace(LOW, stream="state"), count=4),
    "held to the base model": Case(replace(LOW, stream="state", hyper=AdamHyper(anchor=0.1))),
    "LoRA": Case(Policy(), lora=True),
    "fp16 with a step that overflows": Case(HALF, broken=1),
    "fp16 in one pass with a step that overflows": Case(
        replace(HALF, max_grad_norm=1e-3, clipping="previous"), broken=1
    ),
    "fp16 whose updates wait, with a step that overflows": Case(
        replace(HALF, stream="state", gradients="ram"), broken=1
    ),
}
SHARED = {f"{name}, shared": replace(case, policy=replace(case.policy, shard="state"))
          for name, case in CASES.items() if case.policy.optimizer == "adamw"}  # fmt: skip


def engine_of(case: Case, team: Team) -> Engine:
    torch.manual_seed(0)
    if not case.lora:
        return Engine(Model().units(case.text), case.policy, "cpu", team)
    parts = SD1.tiny()
    adapters.inject(parts, Lora(rank=2))
    for name, parameter in parts.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return Engine(SD1.units(parts), case.policy, "cpu", team)


def data_of(case: Case, step: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    data = batches(step, case.count, case.text)
    if not case.lora:
        return data
    wide = SD1.tiny().denoiser.config.cross_attention_dim
    return [(values | {"text": values["text"][..., :1].expand(-1, -1, wide)}, target) for values, target in data]


def train(case: Case, engine: Engine, steps: range = range(STEPS)) -> tuple[list[float], Average]:
    """Steps of two micro-batches or more; and a moving average beside them, which looks at the weights after each of them."""
    team, norms, average = engine.team, [], Average(engine.slices(), 0.9)
    for step in steps:
        data = data_of(case, step)[team.rank :: team.size]

        def loss(prediction: Tensor, i: int, step: int = step, data: list = data) -> Tensor:
            value = (prediction.float() - data[i][1]).pow(2).mean() / case.count
            last = team.rank == team.size - 1 and i == len(data) - 1
            return value * float("inf") if step == case.broken and last else value

        norms.append(float(engine.step([values for values, _ in data], loss, 1e-2).grad_norm))
        if case.ema:
            average.update(engine.slices())
    return norms, average


def held(engine: Engine, average: Average) -> dict[str, Tensor]:
    """All of the state and the average, on the first rank; the others help."""
    engine.exchange.offers["average"] = lambda k: average.values[engine.units[k].name]
    found: dict[str, Tensor] = {}

    def look() -> Iterator[None]:
        averaged = outside.by_parameter(engine.holdings, lambda k: engine.exchange.whole("average", k))
        for kind, tensors in (("", engine.state_dict()), ("average of ", averaged), ("fp32 ", dict(engine.master()))):
            found.update({kind + name: tensor.clone() for name, tensor in tensors.items()})
        yield from ()

    engine.flush()
    list(engine.team.first(look(), engine.exchange.help))
    return found


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    wrong = [n for n in theirs if not torch.equal(ours[n], theirs[n]) and not ours[n].isnan().all()]
    return sorted({*ours} ^ {*theirs}) or wrong


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: p.detach() for unit in engine.units for name, p in unit.module.named_parameters()}


@cache
def by_one(case: Case) -> tuple[Engine, list[float], dict[str, Tensor]]:
    alone = engine_of(case, ALONE)
    norms, average = train(case, alone)
    return alone, norms, held(alone, average)


def compared(case: Case, team: Team) -> dict[str, object]:
    alone, expected, theirs = by_one(replace(case, policy=replace(case.policy, shard="off")))
    engine = engine_of(case, team)
    norms, average = train(case, engine)
    ours = held(engine, average)
    different = apart(ours, theirs) if team.leads else []
    different += apart(weights(engine), weights(alone))
    everywhere = team.gather((different, [n for n in norms if n == n]))
    state = [sum(h.state.home.nbytes for h in e.holdings) for e in (engine, alone)]
    row = {"apart": sorted({name for names, _ in everywhere for name in names})[:3], "state": state}
    row["same everywhere"] = all(told[1] == everywhere[0][1] for told in everywhere)
    row["norms"] = [n for n in norms if n == n] == [n for n in expected if n == n]
    return row


def resumed(case: Case, team: Team) -> dict[str, object]:
    """What two ranks share goes on alone, and what one had goes on shared."""
    engine, alone = engine_of(case, team), engine_of(case, ALONE)
    state = team.tell(held(engine, train(case, engine, range(2))[1]))
    alone.load_state_dict({name: value for name, value in state.items() if not name.startswith(("average", "fp32"))})
    again = engine_of(case, team)
    again.load_state_dict(alone.state_dict())
    runs = [held(each, train(case, each, range(2, STEPS))[1]) for each in (engine, alone, again)]
    return {"apart": [name for run in runs[1:] for name in apart(run, runs[0])][:3] if team.leads else []}


def main() -> None:
    share.SMALLEST = 128  # so that ranks share the rows of a small model, too
    team, _ = join(cpu=True)
    rows = {name: compared(case, team) for name, case in (CASES | SHARED).items()}
    rows["resumed"] = resumed(SHARED["low bits, shared"], team)
    any_of, told, gathered = team.any(team.rank == 1, False), team.tell(team.rank), team.gather(team.rank)
    rows["words"] = {"any": any_of, "tell": told, "gather": gathered}
    if team.leads:
        print("\n".join(json.dumps({"case": name} | row) for name, row in rows.items()), flush=True)
    team.wait()
    team.leave()
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    assert os.environ.get("WORLD_SIZE") == "2", "run by torch.distributed.run with two processes"
    main()
