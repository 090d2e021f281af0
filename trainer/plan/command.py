"""`python -m trainer plan`: the plan for the eye, before anything is downloaded or started.

A table of phases, a bar of the largest one, the settings and the sentence that explains them; a model that is not on this
machine is planned from its family's public configuration.
"""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from trainer import memory, models
from trainer.errors import ConfigError
from trainer.models import Facts, Source, describe
from trainer.plan import calibration, cards
from trainer.plan.calibration import GIB, gib
from trainer.plan.inputs import Machine, at_hand
from trainer.plan.plan import Plan, Together
from trainer.plan.planner import draft
from trainer.settings.config import Config

WIDTH = 60
PAYS = 1.1  # times as fast as one card: below that a second one is better left alone
LETTERS = {"weights": "W", "base weights": "B", "corrections": "C", "moments": "M", "window": "S", "gradients": "G",
           "activations": "A", "inputs": "i", "standing": "W",
           "phase": "A", "graphs": "g", "context": "x", "workspaces": "w", "allocator": "a"}  # fmt: skip


def main(config: Config, as_json: bool = False) -> int:
    """Print it; with `as_json` one line that programs read, and nothing else. The exit code."""
    config = config.model_copy(deep=True)
    facts = facts_for(config)
    machine = at_hand(config, torch.device("cpu" if config.run.device == "cpu" else "cuda"), facts)
    machine = supposed(config, machine)
    made = draft(config, facts, machine)
    if as_json:
        print(json.dumps(made.as_json()))
    else:
        show(made, config, facts, machine)
    return 0 if made.refusal is None else 2


def show(made: Plan, config: Config, facts: Facts, machine: Machine) -> None:
    print(table(made))
    if config.run.cards > 1 and made.steps_per_second is not None:
        print(against_one(made, draft(_on_one(config), facts, machine)))
    if made.refusal is not None:
        print(f"error: {made.refusal.what}\n  fix: {made.refusal.fix}")


def supposed(config: Config, machine: Machine) -> Machine:
    """The card that a preset is usually meant for, where none is here and none was named: its speed is then estimated."""
    usual = cards.USUAL.get(config.preset or "")
    if machine.kind == "cuda" and machine.card is None and machine.free_vram_bytes is None and usual:
        return replace(machine, card=cards.find(usual))
    return machine


def facts_for(config: Config) -> Facts:
    """What `python -m trainer plan` plans with: the named model, or a family's public configuration where it is not here."""
    name, family = config.model.name, config.model.family
    if name is None:
        if (
            family == "auto"
            and config.data.instance_data_dir is None
            and not config.preset
            and config.memory.vram_gb is None
        ):
            return describe("demo")[1]
        return models.family("sd1" if family == "auto" else family).public()
    try:
        return describe(Source.of(config.model))[1]
    except ConfigError:
        if "/" not in name or name.startswith((".", "/", "~")):
            raise
        return (models.guess(name) if family == "auto" else models.family(family)).public()


def table(plan: Plan) -> str:
    """Everything, for the terminal."""
    rows = [("phase", "VRAM", "RAM", "what the VRAM consists of (GiB)")]
    rows += [(p.name, gib(p.vram_bytes), gib(p.ram_bytes), parts(p.parts)) for p in plan.phases]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{plan.model}, {plan.mode}" + (f", preset {plan.preset}" if plan.preset else ""), ""]
    lines += [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3]]) for row in rows
    ]
    lines += ["", bar(plan), "", plan.explanation]
    lines.append(
        "settings: "
        + ", ".join(
            f"{key.split('.')[-1]} {memory.worded(value)}" for key, value in plan.settings.items() if value is not None
        )
    )
    lines.append(
        f"disk: {gib(plan.disk_bytes)} for cache, class images, checkpoints and exports; "
        f"tensors of the step alone: {gib(plan.step_tensor_bytes)}"
    )
    if plan.steps_per_second is not None:
        rates = "published rates" if plan.constants.flops is None else "rates of this card"
        lines.append(
            f"speed: about {plan.steps_per_second:.2f} steps a second on a {plan.card} - "
            f"an estimate from counted arithmetic and {rates}, not measured"
        )
    if plan.clipped_steps_per_second is not None:
        lines.append(
            f"       while no step is clipped; where all are, updates wait: {plan.clipped_steps_per_second:.2f} steps a second"
        )
    if plan.together is not None:
        lines.append(exchanged(plan.together))
    if plan.vram_peak_bytes:
        lines.append(beside(plan))
    lines += [f"note: {text}" for text in plan.assumptions]
    lines += [f"warning: {text}" for text in plan.warnings]
    return "\n".join(lines)


def beside(plan: Plan) -> str:
    """What of the numbers beside the tensors was measured on this card, and what the assumed ones may come to."""
    constants, upper = plan.constants, plan.constants.upper
    unseen = [kind for kind in ("context", "workspaces", "allocator") if not constants.values()[kind].here]
    if not unseen:
        return "context, workspaces and the allocator's share were measured on this card"
    words = ", ".join(
        f"{calibration.WORDS[kind]} {calibration.SHOWN[kind](upper.values()[kind].amount)}" for kind in unseen
    )
    tensors = [p.vram_bytes - sum(p.parts.get(kind, 0) for kind in constants.overhead(0)) for p in plan.phases]
    held = [size + p.parts.get("allocator", 0) for size, p in zip(tensors, plan.phases, strict=True)]
    most = max(map(upper.process, tensors, held))
    return (
        f"{' and '.join(', '.join(calibration.WORDS[kind] for kind in unseen).rsplit(', ', 1))} "
        f"{'are' if len(unseen) > 1 else 'is'} assumed, not measured on this card (trainer/plan/calibration.py); "
        f"at the upper ends of what they may be ({words}) the plan takes {gib(most)}"
    )


def _on_one(config: Config) -> Config:
    one = config.model_copy(deep=True)
    one.run.cards = 1
    return one


def against_one(made: Plan, one: Plan) -> str:
    """Several cards against the same step on one of them, which does their work one after the other."""
    assert made.together is not None and made.steps_per_second is not None and one.steps_per_second is not None
    count, times = made.together.cards, made.steps_per_second / one.steps_per_second
    if made.fits and not one.fits:
        return f"{count} cards: one of them does not hold this run, and each of {count} does"
    said = (
        f"{count} cards: {times:.2f} times as fast as the same step on one of them ({1 / one.steps_per_second:.2f} s)"
    )
    if times >= PAYS:
        return said
    return f"{said}. More cards do not pay here: leave out --cards; one takes the same pictures with --gradient_accumulation_steps"


def exchanged(made: Together) -> str:
    """What several cards cost each other, for the eye."""
    words = (
        f"cards: {made.cards}, each as above, and RAM for each; a step sends {made.bytes / 1e9:.2f} GB from each card"
    )
    if not made.link:
        return words
    hidden = made.seconds - min(made.shown, made.seconds)
    return f"{words}, {made.seconds:.2f} s over {made.link} (assumed), of which {hidden:.2f} s hide behind arithmetic"


def parts(sizes: dict[str, int]) -> str:
    """'weights 1.60 + moments 1.70 + ...', without what rounds to nothing."""
    return " + ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size >= 0.005 * GIB)


def bar(plan: Plan) -> str:
    """The largest phase against the budget, one letter for each kind of bytes."""
    worst = max(plan.phases, key=lambda phase: phase.vram_bytes or phase.ram_bytes)
    whole = max(plan.budget_bytes or 0, worst.vram_bytes or worst.ram_bytes)
    drawn, legend, done = "", [], 0
    for kind, size in worst.parts.items():
        done += size
        drawn += LETTERS.get(kind, "?") * (round(done * WIDTH / whole) - len(drawn))
        if LETTERS.get(kind, "?") in drawn:
            legend.append(f"{LETTERS.get(kind, '?')} {kind}")
    room = f"of {gib(plan.budget_bytes)}" if plan.budget_bytes else ""
    return f"{worst.name}: [{drawn.ljust(WIDTH, '.')}] {gib(worst.vram_bytes or worst.ram_bytes)} {room}\n  {', '.join(legend)}"
