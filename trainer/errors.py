"""What a person can mend: a run or a command ends with it and its fix instead of a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """Something the person at the keyboard can mend: `what` is wrong, and the `fix`. Exit code 2, nothing overwritten."""

    def __init__(self, what: str, fix: str):
        self.what, self.fix = what, fix
        super().__init__(f"{what}\n  fix: {fix}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str]]:
        return type(self), (self.what, self.fix)  # one process tells another


class Diverged(RuntimeError):
    """The loss, or a weight, is no longer a number. The message names the step, the likely cause and the fix."""
