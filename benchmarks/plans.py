"""Every preset, family and mode planned, and a few of the rows for the README.

    python -m benchmarks plans [FAMILY ...]

One line says what fits, with which settings, in how much memory and how fast (an estimate for a named card), or what
stands in the way. Families are planned from their public configurations, each step as a pair of one photo and one class
image; rehearsals are shared between presets, so the whole table costs little more than its smallest plans. All rows go
to PLANS.md beside this file, those of `SHOWN` to the README; numbers there are only ever written by this command. Named
families are planned anew, and rows of the others stay as they are. A second table says how many times as fast several cards
are, by what joins them; `--several` makes that one alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
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
SEVERAL = "<!-- several-cards:begin -->", "<!-- several-cards:end -->"
FAMILIES = tuple(family.name for family in models.FAMILIES)
MODES = ("full", "full+text", "lora", "lora+text")
PLANS, README = Path(__file__).parent / "PLANS.md", Path(__file__).parent.parent / "README.md"
COUNTS = (2, 4, 8)
JOINED = (  # model, card, and what may join several of it
    ("sd1", "RTX 3060", ("pcie", "pcie_x8")),
    ("sd1", "RTX 4090", ("pcie", "pcie_x8")),
    ("sdxl", "RTX 3060", ("pcie", "pcie_x8")),
    ("sdxl", "RTX 3090", ("pcie", "nvlink")),
    ("sdxl", "RTX 4090", ("pcie",)),
    ("sdxl", "H100", ("server",)),
)
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
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default all: " + ", ".join(FAMILIES))
    parser.add_argument("--out", type=Path, default=PLANS, help="a page with markers; default benchmarks/PLANS.md")
    parser.add_argument("--no-readme", action="store_true", help="leave README.md alone")
    parser.add_argument("--several", action="store_true", help="only the table of several cards")
    given = parser.parse_args(argv)
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(f"no table has {', '.join(sorted(unknown))}")
    if given.several or not given.families:
        several = together()
        print(several)
        insert(given.out, several, SEVERAL)
    if given.several:
        return 0
    made = merged(kept(given.out), table(given.families)) if given.families else table()
    print(made)
    insert(given.out, made)
    if not given.no_readme and README.exists():
        insert(README, few(made))
    return 0


def ways(family: str) -> tuple[str, ...]:
    """The modes in which a family is trained."""
    return MODES if models.family(family).trains_text else tuple(mode for mode in MODES if "+" not in mode)


def merged(before: str, after: str) -> str:
    """A table with the rows of the families in another one instead of its own, in the order of `FAMILIES`."""
    head, rule, *anew = after.splitlines()
    made = {_family(line) for line in anew}
    lines = anew + [line for line in before.splitlines()[2:] if _family(line) not in made]
    return "\n".join([head, rule, *sorted(lines, key=lambda line: FAMILIES.index(_family(line)))])


def _family(line: str) -> str:
    return line.split("|")[1].strip()


def table(families: Iterable[str] = FAMILIES, modes: Iterable[str] = MODES) -> str:
    """Markdown."""
    lines = [
        "| model | mode | preset | fits | settings | VRAM peak | RAM peak | step tensors | steps/s, estimated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows(families, modes)])


def rows(families: Iterable[str], modes: Iterable[str]) -> Iterator[str]:
    for family in families:
        for mode in (mode for mode in modes if mode in ways(family)):
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
    words += [f"early updates, reaching {policy.reach_mb} MiB"] if policy.early_updates else []
    clipped = "" if made.clipped_steps_per_second is None else f", {made.clipped_steps_per_second:.2f} clipped"
    speed = "-" if made.steps_per_second is None else f"{made.steps_per_second:.2f}{clipped} ({card.name})"
    fits = "yes" if made.fits else "no"
    return (
        f"| {family} | {made.mode} | {made.preset} | {fits} | {', '.join(words)} "
        f"| {made.vram_peak_bytes / GIB:.2f} of {made.budget_bytes / GIB:.1f} GiB "
        f"| {made.ram_peak_bytes / GIB:.1f} GiB | {made.step_tensor_bytes / GIB:.2f} GiB | {speed} |"
    )


def together(rows: Iterable[tuple[str, str, tuple[str, ...]]] = JOINED, counts: Sequence[int] = COUNTS) -> str:
    """Markdown: how many pictures several cards learn from in the time in which one learns from one card's share of them."""
    shared: dict[tuple[str, int], Rehearsals] = {}
    head = " | ".join(f"{count} cards" for count in counts)
    lines = [f"| model | card | joined by | {head} | a step of one | sent by each of {counts[0]} |"]
    lines.append("|---" * (len(counts) + 5) + "|")
    for family, name, links in rows:
        one = _several(family, name, 1, "auto", shared)
        for link in links:
            made = [_several(family, name, count, link, shared) for count in counts]
            times = (f"{n * m.steps_per_second / one.steps_per_second:.2f}" if n <= cards.LINKS[link].most else "-"
                     for n, m in zip(counts, made, strict=True))  # fmt: skip
            sent = made[0].together.bytes / 1e9
            lines.append(f"| {family} | {name} | {made[0].together.link} | {' | '.join(times)} "
                         f"| {1 / one.steps_per_second:.2f} s | {sent:.2f} GB |")  # fmt: skip
    return "\n".join(lines)


def _several(family: str, name: str, count: int, link: str, shared: dict[tuple[str, int], Rehearsals]) -> Plan:
    """Full fine-tuning on `count` cards with a pair on each."""
    config = overlay.load({"model.family": family, "prior.with_prior_preservation": True})
    config.run.cards, config.run.link, config.train.train_batch_size = count, link, count
    facts = models.family(family).public()
    if (family, count) not in shared:
        shared[family, count] = Rehearsals(config, facts.family.build_meta(facts), "cuda")
    return planner.draft(config, facts, Machine("cuda", cards.find(name)), shared[family, count])


def few(text: str) -> str:
    """The rows of a whole table that the README shows, preset by preset."""
    head, rule, *lines = text.splitlines()
    known = {tuple(cell.strip() for cell in line.split("|")[1:4]): line for line in lines}
    asked = [(*way.split(), preset) for preset, ways in SHOWN.items() for way in ways]
    return "\n".join([head, rule, *(known[key] for key in asked)])


def kept(page: Path) -> str:
    """What stands between the markers."""
    return _around(page)[1].strip()


def insert(page: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the markers."""
    before, _, after = _around(page, marks)
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")


def _around(page: Path, marks: tuple[str, str] = (BEGIN, END)) -> tuple[str, str, str]:
    before, found, rest = page.read_text(encoding="utf-8").partition(marks[0])
    inside, ended, after = rest.partition(marks[1])
    assert found and ended, f"{page} has no {marks[0]} ... {marks[1]}"
    return before, inside, after
