"""Know before you run: what every phase of a run takes on the card, in RAM and on disk, and which plan fits the budget.

A plan is a simulation: the stages' own functions run on tensors without memory (rehearse.py) and every storage is followed
(simulate.py). What no simulation can see is added from a labelled table (calibration.py), and the solver (solver.py)
walks from the fastest plan to the smallest until one fits. `draft` looks at nothing but its arguments, the machine among them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from trainer import memory
from trainer.errors import ConfigError
from trainer.kernels import choice
from trainer.memory import cuda_graphs
from trainer.models import Facts, check_text
from trainer.plan import cards, solver, timeline
from trainer.plan.calibration import Constants, gib
from trainer.plan.inputs import Machine, assumptions, at_hand, budget_bytes
from trainer.plan.phases import Rehearsals
from trainer.plan.plan import PhasePlan, Plan, Together
from trainer.plan.refusal import asked_for, flags, nearest, refuse
from trainer.plan.simulate import Watched
from trainer.policy import Drawing, Policy
from trainer.settings.config import Config


def plan(config: Config, facts: Facts, device: torch.device | str = "cuda", machine: Machine | None = None) -> Plan:
    """The fastest exact plan that fits. Raises ConfigError, with the nearest plan that fits, where there is none."""
    made = draft(config, facts, machine or at_hand(config, torch.device(device), facts))
    if made.refusal is not None:
        raise made.refusal
    return made


def draft(config: Config, facts: Facts, machine: Machine, rehearsals: Rehearsals | None = None) -> Plan:
    """As `plan`, but what does not fit is returned, with its refusal, instead of raised. `rehearsals`: to share with other
    budgets of the same configuration."""
    with choice.references() if machine.no_kernels else nullcontext():
        return _draft(config, facts, machine, rehearsals)


def _draft(config: Config, facts: Facts, machine: Machine, rehearsals: Rehearsals | None) -> Plan:
    check_text(facts.family, config)
    if rehearsals is None:
        parts = facts.family.build_meta(facts)
        rehearsals = Rehearsals(config, parts, machine.kind, machine.bf16, machine.constants)
    budget = budget_bytes(config, machine)
    start = solver.base(config, machine.kind, machine.computes)
    ladder = solver.rungs(config, start)
    if machine.kind == "cpu":
        ladder, budget = ladder[:1], None
    found, phases, drawing = _place(config, ladder, budget, rehearsals)
    work = rehearsals.work(found.policy)
    if found.policy.cuda_graphs:
        cuda_graphs.check_run(config.run.cards, rehearsals.draws)
    card = machine.card if machine.kind == "cuda" else None
    faster = _hurried(config, ladder, found, max(p.ram_bytes for p in phases), budget, rehearsals, machine)
    if faster is not found:
        others = rehearsals.all(faster.policy, budget)
        if budget is None or max(phase.vram_bytes for phase in others[0]) <= budget:
            found, (phases, drawing), work = faster, others, rehearsals.work(faster.policy)
    clipped = None
    if card is not None and found.policy.early_updates:
        late = found.policy.late
        clipped = 1 / _seconds(config, rehearsals.work(late), card, late, machine.constants)
    may = config.memory.cuda_graphs is None and rehearsals.repeats()
    if may and card is not None and _waits_for_host(work, card, machine.constants):
        found, phases = _recorded(found, phases, budget, rehearsals)
    result = Plan(
        model=config.model.name or rehearsals.parts.source,
        mode=mode(config),
        preset=config.preset or "",
        budget_bytes=budget,
        policy=found.policy,
        drawing=drawing,
        settings=settings(config, found.policy, drawing),
        phases=phases,
        step_tensor_bytes=rehearsals.step_tensors(found.policy),
        disk_bytes=rehearsals.disk(found.policy),
        steps_per_second=None if card is None else 1 / _seconds(config, work, card, found.policy, machine.constants),
        card=card.name if card else "",
        clipped_steps_per_second=clipped,
        explanation="",
        assumptions=assumptions(config, machine, found.policy.math),
        together=_together(config, work, card, found.policy, machine.constants) if config.run.cards > 1 else None,
        constants=machine.constants,
    )
    result = replace(result, explanation=explain(result, found, rehearsals))
    asked = asked_for(config)
    better = _unbound(config, asked, result, machine, facts, rehearsals) if asked and not result.fits else None
    result = replace(result, warnings=_warnings(config, asked, result, better, machine))
    kept = better is not None and better.fits  # somebody's own setting that does not fit wins, with a warning
    if result.fits or kept:
        return result
    return replace(result, refusal=refuse(result, better, config, list(nearest(config, result, machine, facts))))


def _place(
    config: Config, ladder: list[tuple[solver.Rung, Policy]], budget: int | None, rehearsals: Rehearsals
) -> tuple[solver.Found, tuple[PhasePlan, ...], Drawing]:
    """The first rung whose whole run fits: the solver looks at the step, and another phase may need more. Where none
    does, the one that needs least."""
    best: tuple[int, solver.Found] | None = None
    while ladder:
        found = _solve(config, ladder, budget, rehearsals)
        phases, _ = rehearsals.all(found.policy, budget)
        while (peak := max(phase.vram_bytes for phase in phases)) > (budget or peak):
            if not found.policy.resident_units or config.memory.resident_units is not None:
                break  # else units that stay leave another phase too little room
            fewer = max(0, found.policy.resident_units - max(2, found.policy.resident_units // 4))
            found = replace(found, policy=replace(found.policy, resident_units=fewer))
            phases, _ = rehearsals.all(found.policy, budget)
        if best is None or peak < best[0]:
            best = peak, found
        if budget is None or peak <= budget or not found.fits:
            break
        words = [rung.words for rung, _ in ladder]
        ladder = ladder[words.index(found.words) + 1 :]
    assert best is not None
    return best[1], *rehearsals.all(best[1].policy, budget)


def _solve(
    config: Config, ladder: list[tuple[solver.Rung, Policy]], budget: int | None, rehearsals: Rehearsals
) -> solver.Found:
    fixed = config.memory.resident_units is not None
    return solver.solve(
        ladder,
        budget,
        rehearsals.step_bytes,
        rehearsals.residents,
        at_least=rehearsals.at_least,
        fixed_residents=fixed,
    )


def _seconds(
    config: Config,
    work: Watched,
    card: cards.Card,
    policy: Policy,
    constants: Constants,
    link: cards.Link | None = None,
) -> float:
    return cards.seconds(work, card, policy.cuda_graphs, link or cards.joined(card, config.run.link), constants)


def _together(config: Config, work: Watched, card: cards.Card | None, policy: Policy, constants: Constants) -> Together:
    sent = timeline.link_bytes(work.timeline)
    if card is None:
        return Together(config.run.cards, "", sent)
    link = cards.joined(card, config.run.link)
    boundless = replace(link, rate=float("inf"), through_host=False)
    shown = _seconds(config, work, card, policy, constants, link) - _seconds(
        config, work, card, policy, constants, boundless
    )
    return Together(config.run.cards, link.source, sent, sent / (link.rate * 1e9), max(shown, 0.0))


def _waits_for_host(work: Watched, card: cards.Card, constants: Constants) -> bool:
    """Whether the card would wait for Python, for more than a thirtieth of a step."""
    recorded, eager = (cards.seconds(work, card, recorded=each, constants=constants) for each in (True, False))
    return recorded < 0.97 * eager


def _hurried(
    config: Config,
    ladder: list[tuple[solver.Rung, Policy]],
    found: solver.Found,
    ram: int,
    budget: int | None,
    rehearsals: Rehearsals,
    machine: Machine,
) -> solver.Found:
    """The plan for a card whose speed is known: the ladder does not know how fast its bus is. ram: bytes that `found` takes."""
    card = machine.card
    if found.policy.early_updates and config.run.cards > 1:
        raise ConfigError(
            "memory.early_updates is for one card: with several, new weights would have to be taken back everywhere.",
            "Leave out --early_updates.",
        )
    if card is None or machine.kind != "cuda" or not found.fits:
        return found
    least = ram - rehearsals.work(found.policy).host_peak
    pace = solver.Pace(
        lambda policy: _seconds(config, rehearsals.work(policy), card, policy, machine.constants),
        rehearsals.step_bytes,
        lambda policy: least + rehearsals.work(policy).host_peak,
        budget,
        None if machine.free_ram_bytes is None else int(solver.RAM_SHARE * machine.free_ram_bytes),
        may_be_early=config.memory.early_updates is not False and config.run.cards == 1,
        reach=config.memory.reach_mb,
    )
    found = solver.early(found, pace)
    if config.memory.resident_units is not None:
        return found
    return solver.streamed(ladder, found, pace, rehearsals.residents)


def _recorded(
    found: solver.Found, phases: tuple[PhasePlan, ...], budget: int | None, rehearsals: Rehearsals
) -> tuple[solver.Found, tuple[PhasePlan, ...]]:
    """The same plan with whole steps as CUDA graphs, where nothing forbids that and there is room for a recording."""
    policy = replace(found.policy, cuda_graphs=True)
    try:
        memory.check(policy)
    except ConfigError:
        return found, phases
    size = rehearsals.step_bytes(policy)
    if budget is not None and size > budget:
        return found, phases
    return replace(found, policy=policy, step_bytes=size), rehearsals.all(policy, budget)[0]


def mode(config: Config) -> str:
    return config.train.method + ("+text" if config.train.train_text_encoder else "")


def settings(config: Config, policy: Policy, drawing: Drawing) -> dict[str, Any]:
    """Every memory setting as it will be, by dotted key."""
    chosen: dict[str, Any] = {f"memory.{name}": value for name, value in memory.choices(policy).items()}
    chosen["memory.cuda_graphs"] = policy.cuda_graphs
    chosen["memory.vae_tile"] = drawing.tile
    chosen["prior.sample_batch_size"] = config.prior.sample_batch_size or drawing.batch
    chosen["sample.batch_size"] = config.sample.batch_size or drawing.batch
    chosen["compute"] = str(policy.math).removeprefix("torch.")
    return chosen


def explain(made: Plan, found: solver.Found, rehearsals: Rehearsals) -> str:
    """The choice in a sentence or two."""
    if made.budget_bytes is None and made.policy.compute == torch.float32 and not made.vram_peak_bytes:
        size = gib(made.ram_peak_bytes)
        return f"On the CPU: fp32 weights and moments, nothing recomputed; about {size} of RAM."
    of = f" of {gib(made.budget_bytes)}" if made.budget_bytes is not None else ""
    words = found.words
    if made.policy.stream != "off" and made.policy.resident_units:
        words += f" ({made.policy.resident_units} of {rehearsals.unit_count} units stay)"
    text = f"{words[0].upper()}{words[1:]}; {gib(made.vram_peak_bytes)}{of}, RAM {gib(made.ram_peak_bytes)}."
    if not made.fits:
        return f"Does not fit: {text}"
    batch = rehearsals.larger_batch(made.policy, made.budget_bytes)
    if batch > rehearsals.config.train.train_batch_size:
        what = "pairs" if rehearsals.shapes.rows > rehearsals.shapes.instances else "photos"
        text += f" A batch of {batch} {what} would also fit."
    if made.clipped_steps_per_second is not None:
        text += " Updates do not wait for the gradient's norm; a step that has to be clipped is made again."
    if made.policy.cuda_graphs:
        text += " Steps are replayed as CUDA graphs, so that the card does not wait for Python."
    if made.policy.moments == "4bit":
        text += " 4-bit moments are approximate."
    return text


def _unbound(
    config: Config, asked: list[str], made: Plan, machine: Machine, facts: Facts, rehearsals: Rehearsals
) -> solver.Found:
    """What the solver would choose without the settings `asked` for."""
    free = config.model_copy(deep=True)
    for name in asked:
        setattr(free.memory, name, type(free.memory).model_fields[name].default)
    start = solver.base(free, machine.kind, machine.computes)
    return _solve(free, solver.rungs(free, start), made.budget_bytes, rehearsals)


def _warnings(
    config: Config, asked: list[str], made: Plan, better: solver.Found | None, machine: Machine
) -> tuple[str, ...]:
    found = []
    if machine.kind == "cuda" and made.budget_bytes is None:
        found.append("No card is here and no budget was named, so nothing limits this plan. "
                     "Say what to plan for: --preset 12gb, --vram_gb 10.5, or --card 'RTX 3060'.")  # fmt: skip
    if better is not None and better.fits:
        found.append(f"{flags(config, asked)} is kept as asked, but makes the plan not fit: "
                     f"{gib(made.vram_peak_bytes)} of {gib(made.budget_bytes)}. "
                     f"Without it {gib(better.step_bytes)} would do ({better.words}).")  # fmt: skip
    if machine.free_ram_bytes is not None and made.ram_peak_bytes > machine.free_ram_bytes:
        found.append(
            f"The plan needs {gib(made.ram_peak_bytes)} of RAM; {gib(machine.free_ram_bytes)} are free. "
            "Close other programs, or expect swapping."
        )
    if machine.no_kernels:
        found.append(f"{machine.no_kernels}, so the kernels' work is done by plain torch operations: more slowly, and with the "
                     f"fp32 copies that this plan counts. {choice.remedy(machine.no_kernels)}")  # fmt: skip
    return tuple(found)
