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
# beside the wings: every floor may import them, they import nothing of ours
FOR_ALL = {"events", "units", "policy", "errors"}
# The benchmarks' own floors. What the command names stands above what measures.
BENCHMARK_WINGS = (("__main__", "report", "plans"), ("plots",), ("suites", "demo"), ("harness",))

# Each list below may only shrink: a rule fails for what is missing from its list and for what no longer needs to be on it.
UPWARD: set[tuple[str, str]] = set()
LONG: set[str] = set()  # files over 350 lines, each with its reason at its top
WIDE: set[str] = set()  # functions of more than 7 parameters
PRIVATE: set[str] = set()  # names with an underscore that another module of ours defines
# Modules without a test file of their own, by the file that tests them (in tests/, without test_ and .py).
TESTED_IN = {
    "benchmarks/report": "benchmarks/plots",
    "cli/cli": "cli/commands cli/explain cli/flags cli/help cli/parse",
    "cli/dialects": "settings/dialects/diffusers settings/dialects/given settings/dialects/kohya settings/dialects/kohya_line "
    "settings/dialects/lines settings/dialects/meanings settings/dialects/programs",
    "cli/foreign_files": "settings/dialects/aitoolkit settings/dialects/files settings/dialects/keyed "
    "settings/dialects/kohya_toml settings/dialects/onetrainer",
    "data/batches": "data/dataset",
    "data/encode": "models/vae",
    "data/photos": "data/reading",
    "draw/preview": "draw/sampler",
    "guard/guard": "guard/rulings",
    "kernels/activations": "kernels/eager kernels/geglu kernels/groupnorm_silu kernels/layernorm",
    "kernels/triton": "kernels/groupnorm_card",
    "kernels/adamw": "kernels/adamw_lowbit kernels/adamw_state kernels/moments kernels/weights24",
    "memory/contract": "memory/allocator memory/boundaries memory/channels_last memory/checkpointing memory/clipping "
    "memory/compile memory/cuda_graphs memory/moments memory/recompute_kernels memory/shard memory/stream memory/weights",
    "models/demo_model": "benchmarks/demo/assets benchmarks/demo/backgrounds benchmarks/demo/cutouts benchmarks/demo/draw "
    "benchmarks/demo/evaluate benchmarks/demo/judge benchmarks/demo/recipe "
    "benchmarks/demo/subjects benchmarks/demo/text benchmarks/demo/vae",
    "models/dit/nextdit/lumina2_names": "models/dit/nextdit/names",
    "models/dit/nextdit/lumina2_units": "models/dit/nextdit/units",
    "models/dit/recognise": "models/dit/family",
    "models/load": "models/describe",
    "models/word": "models/learning out/inversion",
    "models/models": "models/base models/sd/family models/sd/ldm models/sd/sd1 models/sd/sd2 models/sd/sdxl models/sd/text",
    "models/unet_units": "models/sd/units",
    "objective/objective": "objective/loss",
    "out/export": "out/formats",
    "out/marks": "out/card out/metadata",
    "plan/simulate": "plan/phases plan/pretend",
    "plan/solver": "policy",
    "readers/report": "readers/view/figures readers/view/page readers/view/usage",
    "readers/tui": "readers/watch readers/view/charts readers/view/dashboard readers/view/ink readers/view/keys "
    "readers/view/lines readers/view/panels readers/view/pictures readers/view/state readers/view/terminal",
    "run/stages": "run/assemble",
    "settings/config": "errors settings/checks settings/keeping settings/learning settings/effect settings/knob settings/overlay",
    "step/engine": "step/outside step/residency step/runner step/updates units",
    "step/share": "step/ranks/share",
    "step/two_ranks": "step/ranks/exchange step/ranks/settling",
}

# these answer without torch
LIGHT = (
    *(TRAINER / f"settings/{stem}.py" for stem in "config learning keeping knob overlay effect checks".split()),
    *(TRAINER / "settings" / "dialects").glob("*.py"),
    *(TRAINER / f"cli/{stem}.py" for stem in "parse flags foreign_files help explain commands".split()),
    TRAINER / "events.py",
    TRAINER / "errors.py",
    TRAINER / "__main__.py",
)
# beside models/ the rooms that draw pictures, save models or borrow a schedule; the engine and the loop never see diffusers
DIFFUSERS = {
    *"prior/images draw/preview objective/noise out/export out/formats step/rates cli/workings guard/judge".split(),
    *"step/standin prior/prediction plan/rehearse step/optim".split(),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, lazy: bool = True, types: bool = False) -> tuple[str, ...]:
    return tuple(_imports(path, lazy, types))


def _imports(path: Path, lazy: bool, types: bool) -> Iterator[str]:
    """Absolute names of what a file imports; without `lazy` only what importing the file itself pulls in, with `types` also
    what it imports for its annotations alone."""
    package = path.relative_to(ROOT).parts[:-1]
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
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
    settings = TRAINER / "settings"
    mine = ("trainer.settings.knob", "trainer.settings.learning")
    for path in (settings / "config.py", settings / "learning.py", settings / "knob.py", TRAINER / "events.py"):
        foreign = {found for found in imports(path) if not found.startswith(mine)}
        assert roots(foreign) <= {*sys.stdlib_module_names, "pydantic"}, name(path)


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


def stem(path: Path) -> str:
    """What a file of trainer/ is called here: `plan/solver`."""
    return path.relative_to(TRAINER).with_suffix("").as_posix()


def wing(module: str) -> str | None:
    """The wing that "trainer.plan.solver" is in; None for what belongs to all."""
    parts = module.split(".")
    return parts[1] if parts[0] == "trainer" and len(parts) > 1 and parts[1] in FLOOR else None


def test_imports_between_wings_run_down_only():
    upward = set()
    for path in TRAINER.rglob("*.py"):
        mine, own = stem(path), stem(path).partition("/")[0]
        if mine in ("__main__", "__init__"):
            continue
        for imported in imports(path, types=True):
            other = wing(imported)
            if other is None or other == own:
                continue
            assert mine not in FOR_ALL, f"{name(path)} is for all and imports {imported}"
            if FLOOR[other] >= FLOOR[own]:
                upward.add((mine, other))
    assert upward <= UPWARD, f"imports what is not below: {upward - UPWARD}"
    assert upward == UPWARD, f"take from UPWARD, it is mended: {UPWARD - upward}"


def test_benchmarks_have_floors_too():
    floor = {wing: -height for height, wings in enumerate(BENCHMARK_WINGS) for wing in wings}
    assert {path.name for path in BENCHMARKS.iterdir() if (path / "__init__.py").is_file()} <= set(floor)
    for path in BENCHMARKS.rglob("*.py"):
        own = path.relative_to(BENCHMARKS).with_suffix("").parts[0]
        for imported in imports(path):
            parts = imported.removeprefix("trainer.").split(".")
            if parts[0] == "benchmarks" and len(parts) > 1 and parts[1] != own:
                assert floor[parts[1]] < floor[own], f"{name(path)} imports {imported}, which is not below"


def test_every_folder_is_a_wing_and_few_files_stay_outside():
    assert {path.name for path in TRAINER.iterdir() if (path / "__init__.py").is_file()} == set(FLOOR)
    assert {path.stem for path in TRAINER.glob("*.py")} <= FOR_ALL | {"__init__", "__main__"}
    for folder in {path.parent for path in SOURCES}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 14, f"{name(folder)} holds {len(modules)} modules"


def test_no_circle_of_imports_not_even_one_for_annotations():
    modules = {_module(path): path for path in SOURCES}
    arrows = {}
    for module, path in modules.items():
        found = imports(path, types=True)
        arrows[module] = {i for i in found if i in modules and i != module and i.count(".") >= 2}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(arrows[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def _module(path: Path) -> str:
    """The one name that a file is imported by: `trainer.kernels.geglu` for kernels/geglu.py."""
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return dotted if dotted.startswith("trainer") else f"trainer.{dotted}"


def test_functions_take_at_most_seven_parameters():
    """Beside self; kernels, whose launches name every pointer and stride, are free to."""
    wide = set()
    for path in [*TRAINER.rglob("*.py"), *BENCHMARKS.rglob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in SELF]
                if len(named) + bool(given.vararg) + bool(given.kwarg) > 7:
                    wide.add(f"{name(path)}: {node.name}")
    assert wide <= WIDE, f"more than 7 parameters; what belongs together is one object: {wide - WIDE}"
    assert wide == WIDE, f"take from WIDE, it is mended: {WIDE - wide}"


SELF = ("self", "cls")


def test_nobody_uses_the_private_names_of_another_module():
    """Imported, or reached through a dot. Of a library's own private names (torch._foreach_lerp_) this says nothing, and
    a test may look inside what it tests."""
    own = {path: {n.lstrip(".") for n in private_names(path)} for path in SOURCES}
    used = set()
    for path in SOURCES:
        others = {hidden for other, names in own.items() if other != path for hidden in names} - own[path]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and any("trainer" in m or node.level for m in [node.module or ""]):
                used |= {f"{name(path)}: {a.name}" for a in node.names if is_private(a.name)}
            elif isinstance(node, ast.Attribute) and node.attr in others and ast.unparse(node.value) not in SELF:
                used.add(f"{name(path)}: {node.attr}")
    assert used <= PRIVATE, f"private to another module: {used - PRIVATE}"
    assert used == PRIVATE, f"take from PRIVATE, it is mended: {PRIVATE - used}"


def test_what_the_planner_decided_has_its_type_wherever_it_goes():
    bare = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                bare |= {f"{name(path)}: {node.name}" for a in given if a.arg == "policy" and a.annotation is None}
    assert not bare, f"policy: Policy is missing in {bare}"


# where "unet" is a name of other programs' or of Stable Diffusion's own
UNET = ("models/sd/", "files/hub.py", "settings/dialects/")


def test_only_stable_diffusions_own_files_know_a_unet():
    """Everybody else asks the family what its denoiser is called."""
    for path in TRAINER.rglob("*.py"):
        if path.relative_to(TRAINER).as_posix().startswith(UNET):
            continue
        for node in ast.walk(tree(path)):
            word = getattr(node, "value", None) if isinstance(node, ast.Constant) else getattr(node, "id", None)
            word = node.arg if isinstance(node, ast.arg) else word
            named = isinstance(word, str) and (word == "unet" or word.startswith("unet."))
            assert not named, f"{name(path)} line {node.lineno} names a unet"


def is_private(word: str) -> bool:
    return word.startswith("_") and not word.startswith("__") and word != "_"


def private_names(path: Path) -> Iterator[str]:
    """Every private function, class, module value, field and attribute of self that a file defines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in SELF and is_private(node.attr):
            yield node.attr


def test_every_module_has_its_test_file_or_says_who_tests_it():
    listed = {module: test for test, modules in TESTED_IN.items() for module in modules.split()}
    without = set()
    for path in SOURCES:
        place = path.relative_to(TRAINER if path.is_relative_to(TRAINER) else ROOT)
        if not path.stem.startswith("__") and not (ROOT / "tests" / place.parent / f"test_{path.name}").is_file():
            without.add(place.with_suffix("").as_posix())
    missing = without - listed.keys()
    assert not missing, (
        f"no tests/WING/test_MODULE.py (a module that only moved takes its line in TESTED_IN along): {missing}"
    )
    stale = listed.keys() - without
    assert not stale, f"take from TESTED_IN, it has a test file of its own or is gone: {stale}"
    for test in TESTED_IN:
        folder, _, last = test.rpartition("/")
        assert (ROOT / "tests" / folder / f"test_{last}.py").is_file(), f"TESTED_IN names {test}, which is not there"


def test_there_are_no_drawers_for_odds_and_ends():
    for path in [*SOURCES, *TESTS]:
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools"}, name(path)


def test_files_are_short_enough_to_read_at_a_sitting():
    sizes = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = {path for path, lines in sizes.items() if lines > 350}
    assert long <= LONG, {path: sizes[path] for path in long - LONG}
    assert long == LONG, f"take from LONG, it is short enough: {LONG - long}"
    for path in LONG:
        assert "longer than" in (ast.get_docstring(tree(ROOT / path)) or ""), f"{path} does not say why it is so long"
    assert len((TRAINER / "__main__.py").read_text(encoding="utf-8").splitlines()) <= 60
    assert sizes["trainer/run/loop.py"] <= 130
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

    beside = {"contrast", "dco", "others", "prediction", "word"}  # ways to keep what the model knew
    assert set(cards()) == beside | {path.stem for path in (TRAINER / "memory").glob("*.py")} - {"__init__"}
    assert all("Exact:" in text for text in cards().values())


def test_the_wheel_lists_every_package_of_the_checkout():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES} | {ROOT / "presets", BENCHMARKS}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == {package if package.startswith("trainer") else f"trainer.{package}" for package in found}


def test_what_is_imported_is_declared():
    declared = {re.split(r"[<>=\[]", text)[0] for text in PROJECT["project"]["dependencies"]}
    names = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    for path in TRAINER.rglob("*.py"):
        foreign = roots(imports(path, lazy=False)) - set(sys.stdlib_module_names) - {"trainer", "triton"}
        missing = {names.get(root, root) for root in foreign} - declared
        assert not missing, f"{name(path)} imports {missing}"


# What basedpyright reads and finds nothing in (`.ci/run`); may only grow
TYPED = {
    *"trainer/events.py trainer/units.py trainer/policy.py trainer/errors.py trainer/objective trainer/files".split(),
    *"trainer/machine trainer/settings/config.py trainer/settings/overlay.py trainer/settings/effect.py".split(),
    *"trainer/settings/checks.py trainer/memory trainer/plan".split(),
}


def test_what_is_clean_of_type_errors_stays_under_the_checker():
    included = set(PROJECT["tool"]["basedpyright"]["include"])
    assert all((ROOT / path).exists() for path in included)
    for path in TYPED:
        assert {path, *(p.as_posix() for p in Path(path).parents)} & included, (
            f"{path} left [tool.basedpyright] include"
        )
    assert not {"exclude", "ignore"} & PROJECT["tool"]["basedpyright"].keys()


def test_ruff_finds_nothing():
    pytest.importorskip("ruff", reason="ruff is not installed")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


# of torch.cuda: what is asked of some card, and how many arguments it has when it says of which
OF_A_CARD = {
    "set_rng_state": 2,
    **dict.fromkeys(
        "Stream current_stream default_stream synchronize get_rng_state memory_allocated max_memory_allocated memory_reserved "
        "max_memory_reserved reset_peak_memory_stats mem_get_info get_device_properties get_device_capability get_device_name "
        "utilization temperature".split(),
        1,
    ),
}


def test_no_call_leaves_to_chance_which_card_it_means():
    """Without a device torch takes the current one, the first where nobody chose; an event without a stream does, too."""
    for path in [*TRAINER.rglob("*.py"), *KERNELS.rglob("*.py")]:
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            said = ast.unparse(call.func)
            wanted = OF_A_CARD.get(said.removeprefix("torch.cuda."), 0) if said.startswith("torch.cuda.") else 0
            wanted = 1 if said.endswith("event.record") else wanted
            assert len(call.args) + len(call.keywords) >= wanted, f"{name(path)}:{call.lineno}: {said} of which card?"


def test_every_launch_is_made_on_the_card_of_its_tensors():
    for path in KERNELS.glob("*.py"):
        for made in (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)):
            if made.name in ("launch", "launch_backward"):
                assert "choice.on_its_card" in map(ast.unparse, made.decorator_list), f"{name(path)}: {made.name}"
