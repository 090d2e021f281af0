"""Pages for people name what is there: every link leads somewhere, and every file or command they mention exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / ".github/CONTRIBUTING.md",
    ROOT / "trainer/README.md",
    ROOT / "kernels/README.md",
    ROOT / "benchmarks/PLANS.md",
]
TOP = ("trainer", "kernels", "benchmarks", "presets", "tests", ".ci", ".github")
WINGS = {path.name for path in (ROOT / "trainer").iterdir() if path.is_dir()}


def quoted(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))


def ours(word: str) -> Path | None:
    """The file or folder that a word in backticks means, where it means one: `step/engine.py`, `trainer/memory/`, `events.py`."""
    if not re.fullmatch(r"[\w./-]+", word) or ("/" not in word and not word.endswith(".py")) or "WING" in word:
        return None
    first = word.partition("/")[0]
    if first in TOP:
        return ROOT / word
    if first in WINGS or word.endswith(".py"):
        return ROOT / "trainer" / word
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_every_file_that_is_named_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists() or (ROOT / target).exists(), f"{page.name} links to {target}"
    for word in quoted(page):
        place = ours(word)
        assert place is None or place.exists(), f"{page.name} names {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_benchmark_that_is_named_can_be_run(page):
    command = import_module("trainer.benchmarks.__main__")
    for name in re.findall(r"python -m benchmarks ([a-z]+)", page.read_text(encoding="utf-8")):
        assert name in command.SUITES | command.OTHERS, f"{page.name} names python -m benchmarks {name}"


def test_the_picture_of_the_house_shows_the_wings_in_their_order():
    from test_layout import WINGS as floors

    picture = (ROOT / "trainer/README.md").read_text(encoding="utf-8").split("```")[1]
    drawn = re.findall(r"^([a-z]+) ", picture, flags=re.MULTILINE)
    assert drawn == [wing for floor in floors for wing in floor]
