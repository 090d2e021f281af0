"""What to type where a library is missing or broken. By the standard library alone, for it is wanted where nothing else loads.

The usual case is no broken machine but another Python than the one that everything was installed into.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from pathlib import Path

from trainer.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
CONSTRAINTS = PACKAGE / "constraints.txt"
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}  # where the name differs


def command(*names: str, again: bool = False) -> str:
    """The command that installs the tested versions of `names`, and of what they need in turn. again: of what is there and
    broken, which pip would call satisfied; alone, for its neighbours may be gigabytes."""
    options = ["--force-reinstall", "--no-deps"] if again else []
    return shlex.join([sys.executable, "-m", "pip", "install", *options, "-c", str(CONSTRAINTS), *names])


def removal(name: str) -> str:
    """The command that removes what nothing here needs."""
    return shlex.join([sys.executable, "-m", "pip", "uninstall", name])


def stumbled(error: BaseException) -> ConfigError | None:
    """The error for the person, where `error` is that of a library which is missing or breaks as it is imported."""
    name = _importing(error)
    if name is None:
        return None
    package = _package(name)
    if not (isinstance(error, ModuleNotFoundError) and _root(error.name) == name):
        return ConfigError(
            f"{package}, which this needs, does not load ({reason(error)})", command(package, again=True)
        )
    checkout = PACKAGE.parent
    everything = command("-e", str(checkout)) if (checkout / "pyproject.toml").is_file() else command(package)
    home = checkout / ".venv" / "bin" / "python"
    if home.is_file() and Path(sys.prefix).resolve() != home.parent.parent:
        everything = f"start it by {shlex.quote(os.path.relpath(home))}, where it was set up; or {everything}"
    return ConfigError(f"{package}, which this needs, is not installed for {sys.executable}", everything)


def reason(error: BaseException) -> str:
    """The first line of `error`. transformers and diffusers import their parts when they are asked for, and tell then which
    part it was; what it stumbled over is the cause."""
    cause = _behind(error)
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def culprit(error: BaseException) -> str | None:
    """The package that broke while others were importing it, or that they did not find; None where nothing was imported."""
    cause = _behind(error)
    if isinstance(cause, ModuleNotFoundError) and cause.name and not _known(_root(cause.name)):
        return _package(_root(cause.name))
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_name == "<module>"]
    roots = [root for frame in frames if not _known(root := _root(frame.f_globals.get("__name__")))]
    return _package(roots[-1]) if roots else None


def _behind(error: BaseException) -> BaseException:
    while isinstance(error, (ImportError, RuntimeError)) and " import" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _importing(error: BaseException) -> str | None:
    """The top-level name of the foreign library whose import raised `error`: the module that was not found, or the first
    foreign one on the way to the fault."""
    named = _root(error.name) if isinstance(error, ImportError) else ""
    if isinstance(error, ModuleNotFoundError) and named and not _known(named):
        return named
    frames = [(_root(f.f_globals.get("__name__")), f.f_code.co_name) for f, _ in traceback.walk_tb(error.__traceback__)]
    foreign = [(root, code) for root, code in frames if not _known(root)]
    imported = isinstance(error, ImportError) or any(code == "<module>" for _, code in foreign)
    roots = [*(root for root, _ in foreign), *([named] if named and not _known(named) else [])]
    return roots[0] if imported and roots else None


def _package(module: str) -> str:
    return DISTRIBUTIONS.get(module, module)


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _known(root: str) -> bool:
    """Ours, or Python's own: what breaks there is no matter of installing."""
    return root in ("trainer", "__main__") or root in sys.stdlib_module_names
