"""`python -m benchmarks SUITE [--model sd1] [--preset 12gb] [--tiny] [--json] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

SUITES = {
    "ladder": "plain fp32 AdamW, then one technique more per row",
    "presets": "every preset under its own hard cap, all phases",
    "kernels": "our kernels beside reference, torch.compile and bitsandbytes",
    "planner": "planned against measured bytes",
    "fidelity": "update error against fp32 master AdamW, by weight format and learning rate",
    "formats": "training quality on the built-in model, by weight and moment format",
    "scaling": "batch, resolution, model size",
    "peers": "the same job through diffusers, kohya and OneTrainer (name=checkout ...)",
    "scripts": "diffusers' own tests of its scripts, against our command (diffusers=checkout)",
    "compatibility": "what people bring and where they take it, as the tests show",
    "host": "an optimizer step in RAM against a trip over a narrow bus",
    "profile": "where a step's time goes",
    "quality": "the DreamBooth paper's protocol, and drift",
    "search": "ways to learn the subject and keep everything else, by successive halving; goes on where it ended",
}
OTHERS = {
    "plans": "every preset, model and mode planned: PLANS.md and the README's rows",
    "report": "rows to plots, a summary and the README's tables",
    "demo": "rebuild the built-in model from its recipe",
}
MODELS = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
TAKE_PRESET = ("presets", "peers")
TAKE_WORDS = ("planner", "presets", "peers", "quality", "search", "formats", "scripts")
ANY_FAMILY = ("planner", "presets")


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:10} {what}" for name, what in (SUITES | OTHERS).items()),
    )
    parser.add_argument("suite", choices=[*SUITES, *OTHERS], metavar="SUITE", help="one of the list below")
    if words and words[0] in OTHERS:
        return _package(f"benchmarks.{words[0]}").main(words[1:])
    parser.add_argument("words", nargs="*", help="further words of a suite, such as diffusers=/path/to/checkout")
    parser.add_argument(
        "--model", default="sd1", help="sd1 (sd15), sd2 or sdxl; peers: demo, too; planner and presets: any family"
    )
    parser.add_argument("--preset", help="for suites that run presets")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: under a minute on two CPU cores")
    parser.add_argument("--repeats", type=int, help="timed runs of each row; default 5 (peers: 2), with --tiny 2")
    parser.add_argument(
        "--out", type=Path, help="where rows are appended; default benchmarks/results (nowhere with --tiny)"
    )
    parser.add_argument("--json", action="store_true", help="only the JSON line, no table")
    given = parser.parse_intermixed_args(words)  # further words may stand behind options
    timing, rows = _package("benchmarks.harness.timing"), _package("benchmarks.harness.rows")
    suite = _package(f"benchmarks.suites.{given.suite}")
    error = _package("errors").ConfigError
    _package("memory.allocator").start()  # as a run does
    repeats, warmup = given.repeats or (2 if given.tiny else getattr(suite, "REPEATS", 5)), 1 if given.tiny else 2
    model = MODELS.get(given.model, given.model)
    options = timing.Options(model, given.preset, given.tiny, repeats, warmup, tuple(given.words))
    folder = given.out or (None if given.tiny else rows.RESULTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a time-out still shows what there is, and ends its jobs
    try:
        _check(given, error)
        measured = ({"tiny": options.tiny} | row for row in suite.suite(options))
        kept = rows.run(given.suite, measured, folder=folder, quiet=given.json)
    except error as wrong:
        print(f"error: {wrong.what}\n  fix: {wrong.fix}", file=sys.stderr)
        return 2
    return int(any("failed" in row for row in kept))


def _check(given: argparse.Namespace, error: type) -> None:
    """Refuse what cannot be run, or would have no effect, before anything is built."""
    presets = _package("settings.overlay").presets()
    known = [f.name for f in _package("models").FAMILIES] if given.suite in ANY_FAMILY else [*MODELS.values()]
    if given.model not in (*MODELS, *known) and (given.model, given.suite) != ("demo", "peers"):
        raise error(f"--model {given.model} cannot be built here.", f"Choose one of {', '.join(known)}.")
    if given.preset and given.suite not in TAKE_PRESET:
        raise error(f"{given.suite} runs no preset.", f"Leave --preset out; {' and '.join(TAKE_PRESET)} take one.")
    if given.preset and given.preset not in presets:
        raise error(f"There is no preset {given.preset}.", f"Choose one of {', '.join(presets)}.")
    if given.words and given.suite not in TAKE_WORDS:
        raise error(f"{given.suite} takes no further words, such as {given.words[0]!r}.", "Leave them out.")
    if given.repeats is not None and given.repeats < 1:
        raise error("Nothing is measured in less than one repeat.", "Choose --repeats 1 or more.")


def _package(name: str):
    """A module of `trainer` (of this folder: `trainer.benchmarks`) under its one true name, whichever way this was started."""
    root = str(Path(__file__).resolve().parent.parent)
    if (Path(root) / "pyproject.toml").exists() and root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(f"trainer.{name}")


if __name__ == "__main__":
    sys.exit(main())
