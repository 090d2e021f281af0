"""Libraries that a run can do without, so that one which is there but broken takes nothing else along.

diffusers imports peft and bitsandbytes wherever they are installed, for features that nobody here asked for: a bitsandbytes
built for another CUDA, or a peft older than its neighbours, then stops every model from loading. `set_aside` tries them
first and hides those that do not load, as if they were not installed; whoever needs one names it and its fix.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

SPARED = ("bitsandbytes", "peft")
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


def fault(name: str) -> str | None:
    """Why `name` does not import; None where it does."""
    try:
        importlib.import_module(name)
    except FAULTS as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def set_aside() -> dict[str, str]:
    """Hide the spared libraries that are installed and do not load: {name: why}. Call before diffusers is imported."""
    hidden = {}
    for name in SPARED:
        if name not in sys.modules and find_spec(name) is not None and (why := fault(name)):
            for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[module]
            sys.modules[name] = None  # type: ignore[assignment]  # to everybody the same as not installed
            hidden[name] = why
    return hidden
