"""YAML in which ``1e-3`` is a number, as people write it; YAML 1.1, which PyYAML reads, takes it for text."""

from __future__ import annotations

import re
from typing import Any

import yaml

EXPONENTS: tuple[str, re.Pattern[str], list[str]] = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
"""Numbers that YAML 1.1 takes for text, as an implicit resolver: tag, pattern and first characters."""


class NumbersLoader(yaml.SafeLoader):
    """Safe YAML loader, except that ``1e-3`` and ``1.5e3`` are numbers."""


NumbersLoader.add_implicit_resolver(*EXPONENTS)


def load_with_numbers(text: str) -> Any:
    """The one document of a text; raises as :func:`yaml.safe_load` does."""
    loader = NumbersLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
