"""What a test shows (`record_property("shows", "bring|PROGRAM|WHAT|works")`) and the README's tables of it."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"<!-- bench:compatibility table=(\w+):begin -->\n(.*?)<!-- bench:compatibility:end -->", re.DOTALL)


def listed(text: str) -> set[str]:
    """The rows of the tables in `text`, as tests say them."""
    found = set()
    for table, body in TABLE.findall(text):
        for line in body.splitlines():
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 4 and cells[3].isdecimal():
                found.add("|".join((table, *cells[:3])))
    return found


def stale(shows: list[str], text: str) -> str:
    """Why the tables in `text` do not hold what a test that passed shows; empty where they do."""
    missing = [row for row in shows if row not in listed(text)]
    if not missing:
        return ""
    return (
        f"this test passes, and the README's tables do not say so: {'; '.join(missing)}\n"
        "make them anew: python -m benchmarks compatibility && python -m benchmarks report"
    )
