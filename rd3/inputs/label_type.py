"""Types of labels that cannot hold every class number: what they wrapped or rounded cannot be brought back."""

from __future__ import annotations

from typing import Any

from rd3.errors import BadValue
from rd3.lazy import torch

GIVE_INT64 = (
    "give labels as int64 from where they were made: a conversion back does not restore numbers that were wrapped or "
    "rounded"
)


def require_exact(labels: Any, what: str, classes: int, name: str) -> None:
    """Raise :class:`BadValue` for class numbers of a type that does not hold 0 to ``classes`` - 1 exactly.

    ``labels``: an array, a tensor, a column of ``datasets``, pandas or pyarrow, or a sequence of scalars; ``what``:
    their name, ``name``: the dataset's, both for messages.
    """
    for kind in sorted(_types(labels)):
        largest = largest_exact(kind)
        if largest is not None and largest < classes - 1:
            raise BadValue(
                f"{what} are {kind}, which holds class numbers exactly only up to {largest:,}; the largest label of "
                f"{name} is {classes - 1:,}.",
                GIVE_INT64,
            )


def largest_exact(kind: str) -> int | None:
    """The number up to which a type holds every whole number from 0; None for what is not a type of numbers."""
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype) or dtype == torch.bool or dtype.is_complex:
        return None
    try:
        return round(2 / torch.finfo(dtype).eps) if dtype.is_floating_point else torch.iinfo(dtype).max
    except (TypeError, NotImplementedError):  # types of parts of a byte, and of quantised numbers
        return None


def _types(labels: Any) -> set[str]:
    """Names of the types in which labels are held."""
    whole = _type(labels)
    if whole == "object" or isinstance(labels, (list, tuple)):
        return {_type(row) for row in labels if not isinstance(row, int)} - {""}
    return {whole} - {""}


def _type(value: Any) -> str:
    """The name of a type as torch has it, in lower case; "" for a plain number, text or an unknown object."""
    # NumPy, torch and pandas have a dtype, pyarrow a type, columns of ``datasets`` features.
    of_column = getattr(getattr(value, "features", None), "dtype", None)
    kind = getattr(value, "dtype", None) or getattr(value, "type", None) or of_column
    name = str(getattr(kind, "name", None) or kind or "").removeprefix("torch.").removesuffix("[pyarrow]").lower()
    return {"halffloat": "float16"}.get(name, name)  # pyarrow's
