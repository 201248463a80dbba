"""Class lists, and the check that files on disk use the same order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from rd3.errors import ClassOrderError

SPELLING_SHARE = 0.9
"""Fraction of class names that must match by position before the rest count as spelling variants."""


class ClassList(NamedTuple):
    """Class identifiers and readable names, in label order."""

    ids: tuple[str, ...]
    names: tuple[str, ...]


def class_list(name: str) -> ClassList:
    """The class list in ``classes/<name>.json`` of this package."""
    plain = json.loads(files("rd3.datasets").joinpath("classes", f"{name}.json").read_text())
    return ClassList(tuple(plain["ids"]), tuple(plain["names"]))


def _plain(name: str) -> str:
    """A class name without the parts that differ between sources: case, underscores, further synonyms."""
    return name.split(",")[0].replace("_", " ").replace("-", " ").strip().lower()


def check_order(found: Sequence[str], ids: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise :class:`ClassOrderError` for an unexpected class list (identifiers or names) in the file ``where``."""
    fix = "relabel the images in the expected order or register the folder as a separate dataset (rd3 data add)"
    if len(found) != len(ids):
        raise ClassOrderError(f"{where} lists {len(found)} classes, expected {len(ids)}.", fix)
    got = [_plain(str(name)) for name in found]
    for expected in (ids, names):
        wanted = [_plain(name) for name in expected]
        differing = [i for i in range(len(ids)) if got[i] != wanted[i]]
        known = set(wanted)
        if not differing:
            return
        if len(differing) <= (1 - SPELLING_SHARE) * len(ids) and not any(got[i] in known for i in differing):
            return
    # Compare with identifiers or names, whichever has more entries in common with the file.
    expected = ids if len(set(got) & {_plain(i) for i in ids}) else names
    wanted = [_plain(name) for name in expected]
    differing = [i for i in range(len(ids)) if got[i] != wanted[i]]
    first = differing[0]
    raise ClassOrderError(
        f"{where} lists class {first} as {found[first]!r}, expected {expected[first]!r} "
        f"(first of {len(differing)} differences).",
        fix,
    )
