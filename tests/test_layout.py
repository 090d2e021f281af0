"""House rules that a reader would otherwise have to remember: who imports whom, sizes, names, and what is never written."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAINER, KERNELS, BENCHMARKS = ROOT / "trainer", ROOT / "kernels", ROOT / "benchmarks"
SOURCES = sorted([*TRAINER.rglob("*.py"), *KERNELS.rglob("*.py"), *BENCHMARKS.rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# these answer without torch
LIGHT = "config events overlay effect checks foreign cli help explain commands __main__".split()
# beside models/ the rooms that draw pictures, save models or borrow a schedule; the engine and the loop never see diffusers
DIFFUSERS = set(
    "prior sample sampler export export_formats schedule vae doctor adapters judge standin prediction rehearse optim".split()
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, lazy: bool = True) -> tuple[str, ...]:
    return tuple(_imports(path, lazy))


def _imports(path: Path, lazy: bool) -> Iterator[str]:
    """Absolute names of what a file imports; without `lazy` only what importing the file itself pulls in."""
    package = path.relative_to(ROOT).parts[:-1]
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module or "")))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.expr):  # imports are statements
            waiting += ast.iter_child_nodes(node)


def roots(names: tuple[str, ...]) -> set[str]:
    return {imported.partition(".")[0] for imported in names}


def test_what_answers_at_once_never_imports_torch():
    for path in (TRAINER / f"{stem}.py" for stem in LIGHT):
        heavy = roots(imports(path, lazy=False)) & {
            "torch",
            "diffusers",
            "transformers",
            "accelerate",
            "numpy",
            "PIL",
            "rich",
        }
        assert not heavy, f"{name(path)} imports {heavy}"


def test_config_and_events_know_only_the_standard_library_and_the_config_library():
    for stem in ("config", "events"):
        assert roots(imports(TRAINER / f"{stem}.py")) <= {*sys.stdlib_module_names, "pydantic"}


def test_kernels_import_torch_and_triton_and_nothing_of_ours():
    for path in KERNELS.glob("*.py"):
        assert roots(imports(path)) <= {*sys.stdlib_module_names, "torch", "triton", "kernels"}, name(path)


def test_the_kernels_folder_is_no_package():
    """A regular top-level `kernels` package would shadow the one that transformers imports."""
    assert not (KERNELS / "__init__.py").exists()
    assert not (ROOT / "presets" / "__init__.py").exists()


def test_only_models_and_their_neighbours_touch_diffusers():
    for path in TRAINER.rglob("*.py"):
        allowed = path.parent.name == "models" or path.stem in DIFFUSERS
        if not allowed:
            assert not roots(imports(path)) & {"diffusers", "transformers"}, name(path)


def test_nothing_imports_benchmarks_or_tests():
    for path in TRAINER.rglob("*.py"):
        used = {
            imported for imported in imports(path) if imported.startswith(("benchmarks", "trainer.benchmarks", "tests"))
        }
        assert not used, f"{name(path)} imports {used}"


def test_the_loop_knows_neither_model_families_nor_the_screen():
    used = set(imports(TRAINER / "loop.py"))
    assert not any(
        imported.startswith(("trainer.models", "trainer.tui", "trainer.cli", "trainer.planner")) for imported in used
    )


def test_the_core_does_not_look_at_the_screen():
    for path in [
        *TRAINER.glob("models/*.py"),
        *TRAINER.glob("memory/*.py"),
        TRAINER / "engine.py",
        TRAINER / "loop.py",
    ]:
        assert not {
            i for i in imports(path) if i.startswith(("trainer.tui", "trainer.view", "trainer.report", "rich"))
        }, name(path)


def test_there_are_no_drawers_for_odds_and_ends():
    for path in [*SOURCES, *TESTS]:
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools"}, name(path)


def test_files_are_short_enough_to_read_at_a_sitting():
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{name(path)} has {lines} lines"
    assert len((TRAINER / "__main__.py").read_text(encoding="utf-8").splitlines()) <= 60
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 25 for path in (ROOT / "presets").glob("*.toml"))


def test_every_module_says_what_it_is_about():
    for path in SOURCES:
        if path.name != "__init__.py" or path.read_text(encoding="utf-8").strip():
            assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"


def test_nothing_is_swallowed():
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                passes_on = (
                    isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                )  # tidies up and raises again
                assert caught and (passes_on or caught not in ("Exception", "BaseException")), (
                    f"{name(path)}:{node.lineno}"
                )


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|NotImplemented" + r"Error)\b")
    for path in [*SOURCES, *TESTS]:
        assert not words.search(path.read_text(encoding="utf-8")), name(path)


def test_no_path_of_one_machine_is_written_down():
    for path in [*SOURCES, *TESTS, ROOT / "README.md", ROOT / "pyproject.toml"]:
        found = re.search(r"[\"'`\s](/(?:work|root|home|Users)/\w+)", path.read_text(encoding="utf-8"))
        assert not found, f"{name(path)}: {found and found[1]}"


def test_every_technique_has_a_card_with_what_it_saves_and_costs():
    from trainer.explain import cards

    plain = {"__init__", "host"}  # not techniques
    assert set(cards()) == {path.stem for path in (TRAINER / "memory").glob("*.py")} - plain
    assert all("Exact:" in text for text in cards().values())


def test_the_wheel_lists_every_package_of_the_checkout():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES} | {ROOT / "presets", BENCHMARKS}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == {package if package.startswith("trainer") else f"trainer.{package}" for package in found}


def test_what_is_imported_is_declared():
    declared = {re.split(r"[<>=\[]", text)[0] for text in PROJECT["project"]["dependencies"]}
    names = {"PIL": "pillow"}
    for path in TRAINER.rglob("*.py"):
        foreign = roots(imports(path, lazy=False)) - set(sys.stdlib_module_names) - {"trainer", "triton"}
        missing = {names.get(root, root) for root in foreign} - declared
        assert not missing, f"{name(path)} imports {missing}"


def test_ruff_finds_nothing():
    pytest.importorskip("ruff", reason="ruff is not installed")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
