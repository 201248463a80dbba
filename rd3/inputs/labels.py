"""Labels from outside as (N,) int64 in the dataset's class order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rd3.errors import BadValue
from rd3.inputs.arrays import ONE_EACH, described, is_column, rows_of, tensor_of
from rd3.inputs.class_order import ClassList, StatedOrder, labels_by_name
from rd3.inputs.label_type import require_exact
from rd3.inputs.notes import Note
from rd3.lazy import torch


def class_labels(
    labels: Any, count: int, info: ClassList, order: StatedOrder | None = None
) -> tuple[torch.Tensor, list[Note]]:
    """(``count``,) int64 labels in the dataset's class order, and what was found.

    ``labels``: integers, whole floats or one-hot rows in an array, a tensor, a sequence or a column of ``datasets``;
    or class names.  ``order``: the class order that their file states, or their column (:func:`stated_by_column`);
    names mean the same in any order.  Raises :class:`BadValue` or :class:`ClassOrderError`.
    """
    if isinstance(labels, (str, bytes)) or not (is_column(labels) or hasattr(labels, "__array__")):
        raise BadValue(f"labels are {described(labels)}, expected {count} integers.", ONE_EACH)
    plain, named = _from_rows(labels, info)
    order = None if named else order
    given, classes = _shaped(plain, count), len(order.names) if order else info.num_classes
    if given.ndim == 1:  # one-hot rows are exact in any type
        require_exact(labels, "labels", classes, info.name)
    found, notes = _integers(given, classes)
    if order is None:
        outside = ((found < 0) | (found >= info.num_classes)).nonzero()
        if len(outside):
            row = int(outside[0])
            raise BadValue(
                f"Row {row} has label {int(found[row])}, {info.name} has labels 0 to {info.num_classes - 1}.",
                "check the class order and that labels start at 0",
            )
        return found, notes
    brought = torch.tensor(order.bring(found.tolist(), info), dtype=torch.int64)
    if not torch.equal(brought, found):
        notes.append(Note(f"labels renumbered from the class order in {order.where} to that of {info.name}"))
    return brought, notes


def stated_by_column(labels: Any) -> StatedOrder | None:
    """The class order of a ClassLabel column of ``datasets``; None for other labels."""
    names = getattr(getattr(labels, "features", None), "names", None)
    return StatedOrder.read(names, "the column of labels") if names else None


def _from_rows(labels: Any, info: ClassList) -> tuple[torch.Tensor, bool]:
    """Labels as a tensor, and whether they are names, which become numbers of the dataset's order."""
    plain = isinstance(labels, torch.Tensor) or (isinstance(labels, np.ndarray) and labels.dtype.kind in "buifc")
    if not plain:
        rows = rows_of(labels, "labels")
        if rows and all(isinstance(row, (str, bytes)) for row in rows):
            names = [str(row) if isinstance(row, str) else row.decode(errors="replace") for row in rows]
            return torch.tensor(_by_name(names, info)), True
        for place, row in enumerate(rows):
            if row is None or isinstance(row, (str, bytes, dict)):
                raise BadValue(f"The label of row {place} is {row!r}, expected an integer.", ONE_EACH)
            of_bool_type = getattr(row, "shape", None) == () and "bool" in str(getattr(row, "dtype", ""))
            if isinstance(row, bool) or of_bool_type:  # among numbers it would count as 0 or 1
                raise _booleans()
        labels = rows
    return tensor_of(labels, "labels"), False


def _booleans() -> BadValue:
    return BadValue("labels are booleans, expected class numbers.", ONE_EACH)


def _by_name(names: Sequence[str], info: ClassList) -> list[int]:
    known = labels_by_name(names, info)
    for name in names:
        if name not in known:
            raise BadValue(
                f"Label {name!r} is not a class of {info.name}, whose classes are {', '.join(info.class_ids[:3])} ...",
                "name classes by their id or name, or give class numbers",
            )
    return [known[name] for name in names]


def _shaped(labels: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) or (N, C) labels; raises unless N is the number of images."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise BadValue(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected ({count},) integers.", ONE_EACH
        )
    return labels


def _integers(labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, list[Note]]:
    if labels.ndim == 2:
        return _from_one_hot(labels, classes), [Note("labels: one-hot rows, converted to class numbers")]
    if labels.dtype == torch.bool:
        raise _booleans()
    if not labels.dtype.is_floating_point:
        return labels.to(torch.int64), []
    whole = labels.double()
    broken = (~whole.isfinite() | (whole != whole.round())).nonzero()
    if len(broken):
        row = int(broken[0])
        raise BadValue(
            f"Row {row} has label {float(whole[row]):.4g}; labels are {labels.dtype}, expected whole class numbers.",
            ONE_EACH,
        )
    return whole.to(torch.int64), [
        Note(f"labels: {str(labels.dtype).removeprefix('torch.')} with whole values, read as class numbers", True)
    ]


def _from_one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    values = labels.double()
    hot = bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())
    if hot and labels.shape[1] == classes:
        return values.argmax(1)
    what = "one-hot" if hot else "soft"
    raise BadValue(
        f"labels are {what} rows of shape {tuple(labels.shape)}, expected ({len(labels)},) integers"
        f"{f' or one-hot rows of {classes} classes' if labels.shape[1] != classes else ''}.",
        f"give rows of {classes} classes, or one class number for each image"
        if hot
        else "give hard labels, for example labels.argmax(1), and the soft ones beside them as soft_labels",
    )
