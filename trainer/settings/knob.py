"""What a section of the settings is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def knob(default: Any, help: str, *aliases: str, **limits: Any) -> Any:
    """A field whose `aliases` are flag names of diffusers' and kohya's scripts; `limits` are pydantic's (gt, ge, le ...)."""
    return Field(default, description=help, json_schema_extra={"aliases": list(aliases)}, **limits)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )
