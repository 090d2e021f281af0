"""What people bring and where they take it: `python -m benchmarks compatibility` runs the tests that say so, and keeps what
passed. `python -m benchmarks report` writes it into the README, and each of these tests fails while the README does not say
what the test shows (tests/conftest.py), except here.

A test tells what it shows by `record_property("shows", "bring|PROGRAM|WHAT|works")` (or "take"; and "refused" for what
has to be turned down with the way out). Tests that show the same are one row, which holds only where all of them pass; so
the tables of the README say nothing that was not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from ..harness import jobs
from ..harness.timing import Options

TESTS = (
    "tests/cli/test_pasted_lines.py",
    "tests/cli/test_foreign_files.py",
    "tests/models/test_load.py",
    "tests/out/test_matrix.py",
    "tests/out/test_export.py",
    "tests/out/test_marks.py",
    "tests/out/test_as_diffusers.py",
)


def suite(options: Options) -> Iterator[dict]:
    """A row for each (table, program, what)."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", f"--junitxml={told}", *TESTS]
        anew = os.environ | {"TABLES_ANEW": "1"}
        done = subprocess.run(command, cwd=jobs.ROOT, env=anew, capture_output=True, text=True)
        if told.is_file():
            yield from rows(told)
        else:
            yield {"table": "none", "failed": done.stdout[-600:] + done.stderr[-600:]}


def rows(told: Path) -> Iterator[dict]:
    """The rows of a file of results that pytest wrote. A test that broke before it said what it shows is a row of its own."""
    found: dict[tuple[str, ...], list[bool]] = {}
    broken: list[str] = []
    for case in ElementTree.parse(told).iter("testcase"):
        failed = any(case.find(tag) is not None for tag in ("failure", "error"))  # an element without children is false
        shows = [p.get("value", "") for p in case.iter("property") if p.get("name") == "shows"]
        for value in shows:
            found.setdefault(tuple(value.split("|")), []).append(not failed)
        if failed and not shows:
            broken.append(f"{case.get('classname')} {case.get('name')}: {ended(case)}")
    for (table, program, what, outcome), passed in sorted(found.items()):
        row = {"table": table, "program": program, "what": what, "outcome": outcome, "tests": len(passed)}
        yield row if all(passed) else row | {"outcome": "fails", "failed": f"{passed.count(False)} of them fail"}
    for said in broken:
        yield {"table": "none", "failed": said}


def ended(case: ElementTree.Element) -> str:
    """The end of what pytest says of a test that failed, where the reason is."""
    said = [node.text or node.get("message", "") for node in case if node.tag in ("failure", "error")]
    return " ".join(said).strip()[-300:]
