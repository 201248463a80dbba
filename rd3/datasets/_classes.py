"""Class lists as data, and the check that files on disk follow the same order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from rd3.errors import ClassOrderError

SPELLING_SHARE = 0.9
"""Class names are prose: this share has to match where it stands before the others count as other spellings."""


class ClassList(NamedTuple):
    """Identifiers in label order, and the same for people."""

    ids: tuple[str, ...]
    names: tuple[str, ...]


def class_list(name: str) -> ClassList:
    """The list ``classes/<name>.json`` of this package."""
    plain = json.loads(files("rd3.datasets").joinpath("classes", f"{name}.json").read_text())
    return ClassList(tuple(plain["ids"]), tuple(plain["names"]))


def _plain(name: str) -> str:
    """A class name without what differs between publishers: case, underscores, further synonyms."""
    return name.split(",")[0].replace("_", " ").replace("-", " ").strip().lower()


def check_order(found: Sequence[str], ids: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse a class list (identifiers or names) that differs from the expected one; ``where`` names the file."""
    fix = "relabel the images in the expected order, or register the folder as a dataset of its own (rd3 data add)"
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
    # Report against the list that the file meant: the one which shares more names with it.
    expected = ids if len(set(got) & {_plain(i) for i in ids}) else names
    wanted = [_plain(name) for name in expected]
    differing = [i for i in range(len(ids)) if got[i] != wanted[i]]
    first = differing[0]
    raise ClassOrderError(
        f"{where} lists class {first} as {found[first]!r}, expected {expected[first]!r} "
        f"(first of {len(differing)} differences).",
        fix,
    )
