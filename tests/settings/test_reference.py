"""The page of all settings is made from the schema, and a stale one fails."""

import subprocess
import sys
from pathlib import Path

from trainer.settings.config import knobs

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "trainer/settings/REFERENCE.md"


def made(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".github/reference.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_is_what_the_schema_says_now():
    done = made("--check")
    assert done.returncode == 0, done.stdout


def test_every_setting_stands_on_it_once():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| `") for line in lines) == len(knobs())


def test_a_stale_page_is_shown_with_the_command_that_mends_it(tmp_path):
    """In a copy of what the script reads, with one default changed."""
    for folder in ("trainer/cli", "trainer/settings", "trainer/settings/dialects", "presets", ".github"):
        (tmp_path / folder).mkdir(parents=True)
        for path in (ROOT / folder).iterdir():
            if path.is_file():
                (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    for path in [*(ROOT / "trainer").glob("*.py"), ROOT / "pyproject.toml"]:
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    for family in (ROOT / "trainer/assets/models").iterdir():  # by which the families are named
        if family.is_dir():
            (tmp_path / family.relative_to(ROOT)).mkdir(parents=True)
    page = tmp_path / "trainer/settings/REFERENCE.md"
    page.write_text(page.read_text(encoding="utf-8").replace("rare word that will name", "a word that names"))
    done = subprocess.run(
        [sys.executable, tmp_path / ".github/reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "+| `identifier`" in done.stdout
    assert "python .github/reference.py" in done.stdout.splitlines()[-1]
