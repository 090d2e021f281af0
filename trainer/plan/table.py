"""Every preset, family and mode planned for the README: `python -m trainer.plan.table README.md`.

One line says what fits, with which settings, in how much memory and how fast (an estimate for a named card), or what
stands in the way. Families are planned from their public configurations, each step as a pair of one photo and one class
image; rehearsals are shared between presets, so the whole table costs little more than its smallest plans.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.files.whole import whole
from trainer.plan import cards, planner
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine, meta_parts, public_facts
from trainer.plan.phases import Rehearsals
from trainer.plan.plan import Plan
from trainer.settings import overlay
from trainer.settings.config import Config

BEGIN, END = "<!-- plan-table:begin -->", "<!-- plan-table:end -->"
FAMILIES = ("sd1", "sd2", "sdxl")
MODES = ("full", "full+text", "lora", "lora+text")


def table(families: Iterable[str] = FAMILIES, modes: Iterable[str] = MODES) -> str:
    """Markdown."""
    lines = [
        "| model | mode | preset | fits | settings | VRAM peak | RAM peak | step tensors | steps/s, estimated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows(families, modes)])


def rows(families: Iterable[str], modes: Iterable[str]) -> Iterator[str]:
    for family in families:
        for mode in modes:
            shared = None
            for preset in overlay.presets():
                config = settings(family, mode, preset)
                facts = public_facts(family)
                card = cards.find(cards.USUAL[preset])
                shared = shared or Rehearsals(config, meta_parts(config, facts), "cuda")
                made = planner.draft(config, facts, Machine("cuda", card if card.bf16 else None), shared)
                yield row(made, family, card)


def settings(family: str, mode: str, preset: str) -> Config:
    config = overlay.load({"preset": preset, "model.family": family, "prior.with_prior_preservation": True})
    config.train.method = mode.split("+")[0]
    config.train.train_text_encoder = mode.endswith("+text")
    return config


def row(made: Plan, family: str, card: cards.Card) -> str:
    policy = made.policy
    words = [f"checkpointing {policy.checkpointing}"]
    words += ["gradients in RAM"] if policy.gradients == "ram" else []
    words += ["boundaries in RAM"] if policy.boundaries == "ram" else []
    words += [f"{policy.stream} streamed, {policy.resident_units} units stay"] if policy.stream != "off" else []
    speed = "-" if made.steps_per_second is None else f"{made.steps_per_second:.2f} ({card.name})"
    fits = "yes" if made.fits else "no"
    return (
        f"| {family} | {made.mode} | {made.preset} | {fits} | {', '.join(words)} "
        f"| {made.vram_peak_bytes / GIB:.2f} of {made.budget_bytes / GIB:.1f} GiB "
        f"| {made.ram_peak_bytes / GIB:.1f} GiB | {made.step_tensor_bytes / GIB:.2f} GiB | {speed} |"
    )


def insert(readme: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{readme} has no {BEGIN} ... {END}"
    with whole(readme) as part:
        part.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    made = table()
    print(made)
    for name in sys.argv[1:]:
        insert(Path(name), made)
