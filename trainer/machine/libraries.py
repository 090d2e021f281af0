"""Libraries that a run can do without, so that one which is there but broken takes nothing else along.

transformers, diffusers and accelerate import many libraries wherever they are installed, for features that nobody here
asked for: a torchvision that belongs to another torch, a bitsandbytes built for another CUDA, or a peft older than its
neighbours then stops every model from loading. `set_aside` tries them first and hides those that do not load, as if they
were not installed; whoever needs one names it, why it is not there, and the fix (`lacking`).
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.util import find_spec

from trainer.errors import ConfigError
from trainer.machine import mending, releases

# Each of these took all models along when it seemed to be installed and raised as it was imported (tried with transformers
# 5.24, diffusers 0.42, accelerate 1.15). Those come first that others import: a peft that stumbles over torchvision is well.
STRANGERS = tuple(
    """
    triton scipy kernels torchvision torchaudio soundfile soxr kornia onnxruntime torchsde xformers flashinfer
    torchao gguf hqq aqlm eetq gptqmodel neural_compressor transformer_engine
    torch_xla torch_npu torch_mlu torch_musa torch_sdaa habana_frameworks
    """.split()
)
SPARED = (*STRANGERS, "bitsandbytes", "peft")
# what a library that does not fit shows itself by: missing names, missing shared objects, and what it raises on its own
FAULTS = (
    ImportError,
    AttributeError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    KeyError,
    SyntaxError,
    AssertionError,
)
_hidden: dict[str, str] = {}  # what Python forgets of a module that is hidden: why


def fault(name: str) -> str | None:
    """Why `name` does not import; None where it does."""
    if name in _hidden:
        return _hidden[name]
    try:
        importlib.import_module(name)
    except FAULTS as error:
        return mending.reason(error)
    return None


@cache
def loads(name: str) -> bool:
    """Whether `name` is installed and imports; asked for every photo, tried once."""
    return fault(name) is None


def set_aside() -> dict[str, str]:
    """Hide the spared libraries that are installed and do not load: {name: why}. Call before diffusers is imported."""
    hidden = {}
    for name in SPARED:
        if name not in sys.modules and find_spec(name) is not None and (why := fault(name)):
            for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[module]
            sys.modules[name] = None  # type: ignore[assignment]  # to everybody the same as not installed
            hidden[name] = _hidden[name] = why
    return hidden


def mended(name: str) -> str:
    """The command that mends the library `name`, which is there and broken, or removes it where nothing here needs it."""
    known = releases.tested().keys() | releases.asked(extras=True).keys()
    return mending.command(name, again=True) if name in known else f"nothing here needs it: {mending.removal(name)}"


def there(name: str) -> bool:
    """Whether `name` is installed, which says nothing about whether it works."""
    return name in _hidden or find_spec(name) is not None


def remedy(*names: str) -> str:
    """The command for libraries that did not do what was asked of them: those that are there and do not load are
    installed again, where there are any; else all of them in their tested versions."""
    broken = [name for name in names if there(name) and fault(name)]
    return mending.command(*(broken or names), again=bool(broken))


def need(who: str, name: str, otherwise: str) -> None:
    """ConfigError where the library `name` is missing or broken; the words are those of `lacking`."""
    if fault(name) is not None:
        raise lacking(who, name, otherwise)


def lacking(who: str, name: str, otherwise: str, package: str | None = None) -> ConfigError:
    """The error of `who` ("adapters need"), for whom the library `name` is missing or broken; otherwise: what to do without."""
    package, installed = package or name, there(name)
    why = f"does not load ({fault(name)})" if installed else "is not installed"
    return ConfigError(f"{who} {package}, which {why}", f"{mending.command(package, again=installed)}, or {otherwise}")
