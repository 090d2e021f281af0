#!/usr/bin/env python3
"""Write trainer/settings/REFERENCE.md anew: every setting, from the schema itself, so that page and program cannot differ.

    python .github/reference.py            after a change in trainer/settings/config.py or in a preset
    python .github/reference.py --check    write nothing; fail, and show the difference, where the page is stale

Torch is not needed, and nothing is installed. `.ci/run` and the pre-commit hook run it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "trainer" / "settings" / "REFERENCE.md"
sys.path.insert(0, str(ROOT))

from trainer.cli.explain import bounds, set_by  # noqa: E402
from trainer.cli.help import default, shape  # noqa: E402
from trainer.settings.config import Config, knobs  # noqa: E402

HEAD = """\
# Settings

Made by `python .github/reference.py` from `trainer/settings/config.py`; do not edit by hand. A setting's key is its name in a
TOML file (`[section]`, then the name) and its flag (`--name`, or `--section.name`); a switch also has `--no-name`. Layers:
defaults < preset < `--config` file < flags. Where the default is open, the model family, the photos or the planner decide,
and the run prints who did. `python -m trainer explain NAME` says more: when a setting counts, and what a technique costs.
"""
WORDS = {"": "on, off", "N": "a whole number", "X": "a number", "TEXT": "text", "TEXT ...": "texts"}


def main(words: list[str]) -> int:
    made = page()
    if "--check" not in words:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    written = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if made == written:
        return 0
    name = PAGE.relative_to(ROOT).as_posix()
    print("".join(difflib.unified_diff(written.splitlines(True), made.splitlines(True), name, "the schema", n=0)))
    print(f"{name} is stale. Write it anew: python .github/reference.py")
    return 1


def page() -> str:
    return "\n".join([HEAD.rstrip(), *sections()]).rstrip() + "\n"


def sections() -> Iterator[str]:
    heading = None
    for key, info in knobs().items():
        section, _, name = key.rpartition(".")
        if section != heading or heading is None:
            heading = section
            about = Config.model_fields[section].annotation.__doc__.strip() if section else "Chosen first"
            yield f"\n## {about}" + (f" `[{section}]`" if section else "") + "\n"
            yield "| setting | takes | default | what it is | also known as | presets |\n|---|---|---|---|---|---|"
        also = ", ".join(f"`--{alias}`" for alias in info.json_schema_extra["aliases"] if alias != name)
        takes = " ".join(filter(None, (WORDS.get(shape(info), shape(info)), bounds(info))))
        presets = ", ".join(f"{preset.removeprefix('preset ')}: {value}" for preset, value in set_by(key))
        cells = (f"`{name}`", takes, default(info) or "open", info.description, also, presets)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
