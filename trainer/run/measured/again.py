"""A plan that does not hold is made again, once, with what was seen: the run goes on from where it is, by a smaller one.

The first step loads, compiles and allocates what stays, so behind the second one it is known what the process takes:

    beyond  =  what torch has reserved  +  the context and libraries  -  what was planned for a step

Where the card or the budget has no room for it, in a step or in a phase that is still to come, whatever stands beside
tensors is taken to be so much larger, and the planner chooses anew. The state goes to disk, the run's pieces are let go of and
built again from there, in the same process; how a step's bytes are placed changes no bit of what it computes. Where a step did
not even come to its end, there is nothing to keep: the run begins again where it began.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch

from trainer import memory
from trainer.errors import ConfigError
from trainer.events import PHASES, Event, Notice, Stage
from trainer.files.whole import remove
from trainer.machine import vitals
from trainer.out import checkpoint
from trainer.plan import planner
from trainer.plan.calibration import GIB, MIB, Value, gib
from trainer.plan.plan import Plan
from trainer.run import prepare
from trainer.run.prepare import Run
from trainer.run.trained import Trained
from trainer.settings import overlay

OUTGROWN = "the plan does not hold"  # why training ended, before it goes on by another plan
COMING = PHASES[PHASES.index("train") :]  # phases that are not over when it is looked
STEP = 2  # of a process, behind which it is looked
NOISE = 64 * MIB  # by which a card's account may be off, as others come and go; a plan's margin is twice that
SLACK = 2 * NOISE  # more than a step that found no memory needs at least: how much more is not known
ASKED = re.compile(r"allocate ([\d.]+) (GiB|MiB|KiB|bytes)")


def taken(run: Run) -> int:
    """Bytes that the process has of the card; 0 without one. Where the driver does not say, what was free when the plan was
    made and is not, and torch does not hold, is counted as its own."""
    if run.device.type != "cuda":
        return 0
    if (own := vitals.own_bytes(run.device)) is not None:
        return own
    reserved, context = torch.cuda.memory_reserved(run.device), run.plan.constants.context.amount
    if (had := run.basis.machine.free_vram_bytes) is not None:
        context = max(context, min(had - torch.cuda.mem_get_info(run.device)[0] - reserved, 2 * GIB))
    return reserved + int(context)


class Watch:
    """Looks once, behind the second step that this process takes, and leaves in `plan` what the run is to go on with."""

    def __init__(self, run: Run, trained: Trained):
        self.run, self.trained, self.at, self.plan = run, trained, trained.step + STEP, None

    def __call__(self) -> Stage[str]:
        """Why training is to end here, for another plan; empty where the plan holds."""
        if self.trained.step == self.at - 1:
            memory.allocator.release()  # what loading and the search for algorithms left, so that one step's own is seen
        if self.trained.step != self.at or self.run.outgrown:
            return ""
        most = max(self.run.team.gather(taken(self.run)))
        return (yield from self._larger(most, "Behind the second step"))

    def broke_off(self, failure: torch.OutOfMemoryError) -> Stage[str]:
        """As a call, where one of the first steps found no memory. Raises `failure` where that is nothing new."""
        run = self.run
        if self.trained.step > self.at or run.outgrown or run.team.size > 1 or run.plan.budget_bytes is None:
            raise failure
        most = max(taken(run) + asked_for(str(failure)), run.plan.budget_bytes + SLACK)
        if stopped := (yield from self._larger(most, "Before its second step was done")):
            return stopped
        raise failure

    def _larger(self, most: int, when: str) -> Stage[str]:
        plan, budget = self.run.plan, self.run.plan.budget_bytes
        worst = max((phase for phase in plan.phases if phase.name in COMING), key=lambda phase: phase.vram_bytes)
        coming = most + worst.vram_bytes - planned(plan)
        if budget is None or coming <= budget + NOISE:
            return ""
        then = f", so phase {worst.name} would take {gib(coming)}" if most <= budget + NOISE else ""
        yield Notice(f"{when} the run takes {gib(most)} of {gib(budget)}, and {gib(planned(plan))} were planned{then}.")
        self.plan = smaller(self.run, most)
        if self.plan is None:
            yield Notice("No smaller plan was found, so it stays as it is.", level="warning")
        return OUTGROWN if self.plan is not None else ""


def planned(plan: Plan) -> int:
    """Bytes of the process in a step."""
    return next(phase.vram_bytes for phase in plan.phases if phase.name == "train")


def asked_for(said: str) -> int:
    """Bytes that were asked for in vain, from torch's own words; 0 where it has others."""
    found = ASKED.search(said)
    return int(float(found[1]) * {"GiB": GIB, "MiB": MIB, "KiB": 1 << 10, "bytes": 1}[found[2]]) if found else 0


def smaller(run: Run, most: int) -> Plan | None:
    """The plan that fits when as much more stands beside all tensors as a step has shown; None where there is none with the
    same numbers in the same formats."""
    basis, before = run.basis, run.plan.constants.workspaces
    more = Value(before.amount + most - planned(run.plan), True, "what a step took beside its tensors", here=True)
    machine = replace(basis.machine, constants=replace(basis.machine.constants, workspaces=more))
    try:
        found = planner.draft(basis.config.model_copy(deep=True), basis.facts, machine)
    except ConfigError:
        return None
    same = ("weights", "moments", "channels_last", "math", "optimizer")
    alike = all(getattr(found.policy, name) == getattr(run.plan.policy, name) for name in same)
    other = (found.policy, found.drawing) != (run.plan.policy, run.plan.drawing)
    return found if found.fits and alike and other else None


def go_on(run: Run, plan: Plan) -> Iterator[Event]:
    """Everything that the old plan had settled is settled by `plan`; the pieces of the run are gone and can be built again."""
    gc.collect()  # an engine and what it offers to others hold each other
    memory.allocator.release()
    run.plan, run.outgrown = plan, True
    for key, origin in [*run.config.provenance.items()]:
        if origin == overlay.PLANNER:
            run.config.settle(key, run.basis.config.value(key), run.basis.config.provenance.get(key, "default"))
    prepare.obey(run.config, plan)
    if run.team.leads:
        overlay.write(run.config, run.config.provenance, run.folder / "config.toml")
    yield from plan.events()


def arrived(run: Run, trained: Trained) -> None:
    """The state that was put down for the move is where it belongs; a checkpoint that was due anyway stays."""
    if run.carried is None:
        return
    trained.resumed = None  # what is due with this step was done before
    if run.team.leads and (run.habits.save_every is None or trained.step % run.habits.save_every):
        with suppress(OSError):  # Windows deletes nothing that is still mapped; it is a checkpoint like any other
            remove(run.carried)


def put_down(run: Run, trained: Trained) -> None:
    """Where the run goes on: the checkpoint that was just written."""
    run.team.wait()
    run.resume = run.carried = checkpoint.at(run.folder, trained.step)
