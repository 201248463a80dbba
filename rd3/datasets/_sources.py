"""The registry of datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rd3.registry import Registry

if TYPE_CHECKING:
    from rd3.datasets._source import Source

SOURCES: Registry[type[Source]] = Registry("dataset", "rd3.datasets")


def register_dataset(name: str) -> Callable[[type[Source]], type[Source]]:
    """Decorator: register a source under a name, which must equal its ``info.name``."""
    return SOURCES.register(name)
