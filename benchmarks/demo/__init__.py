"""The demo model, its judge and its subjects, rebuilt by one command: `python -m benchmarks demo`.

Every step finds on disk what an earlier run finished and goes on from there. More classes and a GPU make the model
larger by the same recipe; on a CPU the defaults draw a few classes well.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Imported lazily, so that `--help` of the other suites does not wait for torch."""
    from .recipe import main as run

    return run(argv)
