"""Images of every class in both parts of a dataset that a user registers, in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rd3.datasets._folder import INNER, FolderRecords, class_folders
from rd3.datasets._records import Found
from rd3.errors import BadValue
from rd3.inputs.files import sentence_on_unread

_LEAST = {"train": 2, "test": 1}
"""Images of a class that a part needs."""
_WORDS = {"train": "training", "test": "test"}


def check_classes(found: Found, class_ids: Sequence[str], split: Literal["train", "test"], *, carved: bool) -> None:
    """Raise :class:`BadValue` for a class with too few images; ``carved``: the test split was part of the training."""
    parts, least = found.parts(), _LEAST[split]
    records = parts[split]
    counts = np.bincount(records.labels, minlength=len(class_ids))
    short = np.flatnonzero(counts < least)
    if not len(short):
        return
    label, other = int(short[0]), "test" if split == "train" else "train"
    has, there = int(counts[label]), int((parts[other].labels == label).sum())
    left = None
    if not has and isinstance(records, FolderRecords):
        left = sentence_on_unread(records.root / class_folders(records.root, class_ids)[label], list(INNER))
    message = (
        f"{found.folder}: class {class_ids[label]} has {has} {_WORDS[split]} images"
        f"{' after the test split' if carved else ''}, expected {least} or more"
        + (f" (first of {len(short)} such classes)" if len(short) > 1 else "")
        + (f"; {left}" if left else "")
    )
    if carved:
        raise BadValue(f"{message}.", "add images of that class, or remove the class")
    if there - (least - has) >= _LEAST[other]:
        more = f"move some of its {there} {_WORDS[other]} images to the {_WORDS[split]} split"
    else:
        more = f"add {_WORDS[split]} images of that class" if there else "add images of that class to both splits"
    anew = "" if isinstance(records, FolderRecords) else " and number the others from 0 again"
    raise BadValue(f"{message}.", f"{more}, or remove the class from both splits{anew}")
