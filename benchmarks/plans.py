"""Every preset, family and mode planned, and a few of the rows for the README.

    python -m benchmarks plans

One line says what fits, with which settings, in how much memory and how fast (an estimate for a named card), or what
stands in the way. Families are planned from their public configurations, each step as a pair of one photo and one class
image; rehearsals are shared between presets, so the whole table costs little more than its smallest plans. All rows go
to PLANS.md beside this file, those of `SHOWN` to the README; numbers there are only ever written by this command.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer import models
from trainer.plan import cards, planner
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine
from trainer.plan.phases import Rehearsals
from trainer.plan.plan import Plan
from trainer.settings import overlay
from trainer.settings.config import Config

BEGIN, END = "<!-- plan-table:begin -->", "<!-- plan-table:end -->"
FAMILIES = ("sd1", "sd2", "sdxl")
MODES = ("full", "full+text", "lora", "lora+text")
PLANS, README = Path(__file__).parent / "PLANS.md", Path(__file__).parent.parent / "README.md"
SHOWN = {  # preset: models and modes that show what it is for
    "4gb": ("sd1 full", "sdxl full"),
    "6gb": ("sd1 full+text", "sdxl lora"),
    "8gb": ("sd2 full", "sdxl full"),
    "12gb": ("sd2 full+text", "sdxl full"),
    "16gb": ("sdxl full+text",),
    "24gb": ("sdxl full",),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PLANS, help="a page with markers; default benchmarks/PLANS.md")
    parser.add_argument("--no-readme", action="store_true", help="leave README.md alone")
    given = parser.parse_args(argv)
    made = table()
    print(made)
    insert(given.out, made)
    if not given.no_readme and README.exists():
        insert(README, few(made))
    return 0


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
                facts = models.family(family).public()
                card = cards.find(cards.USUAL[preset])
                shared = shared or Rehearsals(config, facts.family.build_meta(facts), "cuda")
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


def few(text: str) -> str:
    """The rows of a whole table that the README shows, preset by preset."""
    head, rule, *lines = text.splitlines()
    known = {tuple(cell.strip() for cell in line.split("|")[1:4]): line for line in lines}
    asked = [(*way.split(), preset) for preset, ways in SHOWN.items() for way in ways]
    return "\n".join([head, rule, *(known[key] for key in asked)])


def kept(page: Path) -> str:
    """What stands between the markers."""
    return _around(page)[1].strip()


def insert(page: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, _, after = _around(page)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _around(page: Path) -> tuple[str, str, str]:
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    inside, ended, after = rest.partition(END)
    assert found and ended, f"{page} has no {BEGIN} ... {END}"
    return before, inside, after
