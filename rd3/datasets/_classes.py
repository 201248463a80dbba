"""Class lists, and the check that files on disk use the same order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from rd3.errors import ClassOrderError
from rd3.inputs.class_order import ClassList
from rd3.inputs.names import plain_name

SPELLING_SHARE = 0.9
"""Fraction of class names that must match by position before the rest count as spelling variants."""


def name_and_classes(name: str) -> dict[str, Any]:
    """``name``, ``class_ids`` and ``class_names`` of a dataset, from ``classes/<name>.json`` of this package."""
    plain = json.loads(files("rd3.datasets").joinpath("classes", f"{name}.json").read_text())
    return {"name": name, "class_ids": tuple(plain["ids"]), "class_names": tuple(plain["names"])}


def check_order(found: Sequence[str], info: ClassList, where: str) -> None:
    """Raise :class:`ClassOrderError` for an unexpected class list (identifiers or names) in the file ``where``."""
    fix = (
        "relabel the images in the expected order, or save them as class folders and register these as a separate "
        "dataset: rd3 data add NAME --folder DIR"
    )
    count = info.num_classes
    if len(found) != count:
        raise ClassOrderError(f"{where} lists {len(found)} classes, expected {count}.", fix)
    got = [plain_name(str(name)) for name in found]
    comparisons = []
    for expected in (info.class_ids, info.class_names):
        wanted = [plain_name(name) for name in expected]
        differing = [i for i in range(count) if got[i] != wanted[i]]
        if count - len(differing) >= SPELLING_SHARE * count and not {got[i] for i in differing} & set(wanted):
            return
        comparisons.append((expected, differing, set(got) & set(wanted)))
    of_ids, of_names = comparisons
    expected, differing, _common = of_ids if of_ids[2] else of_names
    first = differing[0]
    raise ClassOrderError(
        f"{where} lists class {first} as {found[first]!r}, expected {expected[first]!r} "
        f"(first of {len(differing)} differences).",
        fix,
    )
