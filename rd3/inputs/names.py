"""Names of classes as they differ between sources and file systems."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def portable_name(name: str) -> str:
    """A name as every file system can hold it: composed characters (macOS may split é in two), no space around it."""
    return unicodedata.normalize("NFC", name).strip()


def plain_name(name: str) -> str:
    """A class name without the parts that differ between sources: case, underscores, further synonyms."""
    return portable_name(name.split(",")[0].replace("_", " ").replace("-", " ")).lower()


def match_names(found: Iterable[str], wanted: Sequence[str]) -> dict[str, int]:
    """The place in ``wanted`` of every name in ``found`` that is there.

    Names are compared as they are, then as :func:`portable_name` and :func:`plain_name` write them.  Each place is
    given once, and a name that could stand for several of those left is not found.
    """
    left = dict.fromkeys(found)
    places: dict[str, int] = {}
    for written in (str, portable_name, plain_name):
        given = set(places.values())
        by_name = _unique([(written(name), place) for place, name in enumerate(wanted) if place not in given])
        for key, name in _unique([(written(name), name) for name in left]).items():
            if key in by_name:
                places[name] = by_name[key]
                del left[name]
    return places


def _unique(pairs: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """The pairs whose name occurs once."""
    counts = Counter(name for name, _value in pairs)
    return {name: value for name, value in pairs if counts[name] == 1}
