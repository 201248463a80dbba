"""Fields of recipes, and of what is in them, that came after results were made."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def neutral(value: Any, **field: Any) -> Any:
    """A field added after the first release: left out of the key while it equals ``value``."""
    return Field(default=value, json_schema_extra={"neutral": value}, **field)
