"""What the words of a line, or the keys of a file, have set so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Given:
    """What the words of a line have set so far: `values` by dotted key, `spelled` with the flag each came from, `later`
    with the text of flags whose meaning the rest of the line decides; `origins` of values that are no flag's, and what
    `elsewhere` (a file of ours beneath the line) already sets."""

    values: dict[str, Any] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()

    def put(self, key: str, value: Any, flag: str) -> None:
        self.values[key], self.spelled[key] = value, flag

    def default(self, key: str, value: Any, flag: str) -> bool:
        """Whether the value was missing, and is there now."""
        missing = key not in self.values and key not in self.elsewhere
        if missing:
            self.put(key, value, flag)
        return missing
