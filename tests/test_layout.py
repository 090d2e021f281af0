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

# From top to bottom; imports run down only. Wings on one floor do not import each other.
WINGS = (
    ("cli",),
    ("readers",),
    ("run",),
    ("plan", "guard", "prior", "out"),
    ("draw", "data"),
    ("step", "models"),
    ("memory",),
    ("objective",),
    ("machine",),
    ("settings",),
    ("files",),
)
FLOOR = {wing: len(WINGS) - floor for floor, wings in enumerate(WINGS) for wing in wings}
FOR_ALL = {
    "events",
    "units",
    "policy",
    "errors",
}  # beside the wings: every floor may import them, they import nothing of ours
UPWARD = {("settings/checks", "models")}  # still to end; may only shrink

LONG = {  # files over 350 lines, each with its reason at its top; may only shrink
    "trainer/run/stages.py",
    "trainer/step/engine.py",
    "benchmarks/suites/peers.py",
}

# these answer without torch
LIGHT = (
    *(TRAINER / f"settings/{stem}.py" for stem in "config overlay effect checks foreign".split()),
    *(TRAINER / f"cli/{stem}.py" for stem in "parse help explain commands".split()),
    TRAINER / "events.py",
    TRAINER / "errors.py",
    TRAINER / "__main__.py",
)
# beside models/ the rooms that draw pictures, save models or borrow a schedule; the engine and the loop never see diffusers
DIFFUSERS = {
    *"prior/images draw/preview draw/sampler out/export out/formats run/schedule cli/doctor guard/judge".split(),
    *"step/standin prior/prediction plan/rehearse step/optim".split(),
}


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
    for path in LIGHT:
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
    for path in (TRAINER / "settings" / "config.py", TRAINER / "events.py"):
        assert roots(imports(path)) <= {*sys.stdlib_module_names, "pydantic"}


def test_kernels_import_torch_and_triton_and_nothing_of_ours():
    for path in KERNELS.glob("*.py"):
        assert roots(imports(path)) <= {*sys.stdlib_module_names, "torch", "triton", "kernels"}, name(path)


def test_the_kernels_folder_is_no_package():
    """A regular top-level `kernels` package would shadow the one that transformers imports."""
    assert not (KERNELS / "__init__.py").exists()
    assert not (ROOT / "presets" / "__init__.py").exists()


def test_only_models_and_their_neighbours_touch_diffusers():
    for path in TRAINER.rglob("*.py"):
        stem = path.relative_to(TRAINER).with_suffix("").as_posix()
        if not (stem.startswith("models/") or stem in DIFFUSERS):
            assert not roots(imports(path)) & {"diffusers", "transformers"}, name(path)


def test_nothing_imports_benchmarks_or_tests():
    for path in TRAINER.rglob("*.py"):
        used = {
            imported for imported in imports(path) if imported.startswith(("benchmarks", "trainer.benchmarks", "tests"))
        }
        assert not used, f"{name(path)} imports {used}"


def wing(module: str) -> str | None:
    """The wing that "trainer.plan.solver" is in; None for what belongs to all."""
    parts = module.split(".")
    return parts[1] if parts[0] == "trainer" and len(parts) > 1 and parts[1] in FLOOR else None


def test_imports_between_wings_run_down_only():
    for path in TRAINER.rglob("*.py"):
        stem = path.relative_to(TRAINER).with_suffix("").as_posix()
        own = stem.partition("/")[0]
        for imported in imports(path):
            other = wing(imported)
            if other is None or other == own or stem in ("__main__", "__init__"):
                continue
            assert stem not in FOR_ALL, f"{name(path)} is for all and imports {imported}"
            assert FLOOR[other] < FLOOR[own] or (stem, other) in UPWARD, (
                f"{name(path)} imports {imported}, which is not below"
            )


def test_every_folder_is_a_wing_and_few_files_stay_outside():
    assert {path.name for path in TRAINER.iterdir() if (path / "__init__.py").is_file()} == set(FLOOR)
    assert {path.stem for path in TRAINER.glob("*.py")} <= FOR_ALL | {"__init__", "__main__"}
    for folder in {path.parent for path in TRAINER.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 14, f"{name(folder)} holds {len(modules)} modules"


def test_no_circle_of_imports():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in TRAINER.rglob("*.py")
    }
    arrows = {
        module: {i for i in imports(path) if i in modules and i != module and not i.count(".") < 2}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(arrows[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def test_there_are_no_drawers_for_odds_and_ends():
    for path in [*SOURCES, *TESTS]:
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools"}, name(path)


def test_files_are_short_enough_to_read_at_a_sitting():
    for path in SOURCES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350 or name(path) in LONG, f"{name(path)} has {lines} lines"
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
    from trainer.cli.explain import cards

    assert set(cards()) == {path.stem for path in (TRAINER / "memory").glob("*.py")} - {"__init__"}
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
