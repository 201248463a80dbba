"""Soft labels that a user supplies, a row for each image, as :class:`rd3.soft_labels.SoftLabels`."""

from __future__ import annotations

from typing import Any

from rd3.errors import BadValue, ClassOrderError
from rd3.inputs.arrays import described, tensor_of
from rd3.inputs.class_order import ClassList, StatedOrder, best_permutation
from rd3.inputs.notes import Note
from rd3.lazy import torch
from rd3.soft_labels import DTYPES, KINDS, SoftLabelKind, SoftLabels

_EXPECTED_AGREEMENT = 0.9
"""The note is marked doubtful if the largest soft label is at the image's class for fewer than this share of images."""
_MIN_GAIN = 0.5
"""Least gain in agreement, as a share of images, for another order of the columns to count as the right one."""
_LEVEL = 0.05
"""Significance level of agreement above chance, where it is below a half."""
_HOW_TO_STATE = "--soft-label-kind (in Python soft_label_kind=, in the file a field soft_label_kind)"


def soft_labels_of(
    values: Any, kind: Any, labels: torch.Tensor, info: ClassList, order: StatedOrder | None = None
) -> tuple[SoftLabels, list[Note]]:
    """Check soft labels (N, C) against the ``labels`` (N,) int64 of the same images, and say what was found.

    ``kind``: ``logits`` or ``probabilities`` as stated, or None: rows that sum to 1 are probabilities, and values below
    0 are logits.  ``order``: the class order that the file or column states, in which the columns are; ``labels`` are
    in the dataset's order already.  Raises :class:`BadValue` or :class:`ClassOrderError`.
    """
    given, expected = tensor_of(values, "soft_labels"), (len(labels), info.num_classes)
    dtype = str(given.dtype).removeprefix("torch.")
    if tuple(given.shape) != expected or dtype not in DTYPES:
        raise BadValue(
            f"soft_labels are {dtype} of shape {tuple(given.shape)}, expected floats of shape {expected}.",
            "give one row for each image, with one column for each class",
        )
    resolved = _kind(given, kind)
    columns = given if order is None else columns_in_order(given, order, info)
    soft = SoftLabels(columns.contiguous(), resolved)
    how = "as stated" if kind is not None else "rows sum to 1" if resolved == "probabilities" else "values below 0"
    shape = " x ".join(map(str, given.shape))
    notes = [Note(f"soft labels: {shape} {soft.dtype} {resolved} ({how}), {soft.nbytes} bytes")]
    if resolved == "logits" and bool((given >= 0).all()) and _wrong_sum(given) is None:
        notes.append(Note("soft labels are stated as logits, but their rows sum to 1 as probabilities do", True))
    return soft, [*notes, _agreement(soft, labels, given, order, info)]


def columns_in_order(values: torch.Tensor, order: StatedOrder, info: ClassList) -> torch.Tensor:
    """(N, C) columns brought from the stated class order to the dataset's; raises :class:`ClassOrderError`."""
    target = order.bring(range(values.shape[1]), info)
    if sorted(target) != list(range(info.num_classes)):
        raise ClassOrderError(
            f"{order.where} does not list every class of {info.name} once, so the order of the columns of "
            "soft_labels is unknown.",
            "bring the columns to the dataset's class order (rd3 list datasets), and leave out the stated one",
        )
    return torch.empty_like(values).index_copy_(1, torch.tensor(target), values)


def _wrong_sum(given: torch.Tensor) -> tuple[int, float] | None:
    """The row whose sum is furthest from 1, and that sum; None if all are 1 as far as their type can tell."""
    sums = given.double().sum(dim=1)
    off = (sums - 1).abs()
    row = int(off.argmax())
    return (row, float(sums[row])) if float(off[row]) > max(1e-3, 4 * torch.finfo(given.dtype).eps) else None


def _kind(given: torch.Tensor, stated: Any) -> SoftLabelKind:
    """The stated kind, or the one that the values can only have; raises for values that are not of that kind."""
    broken = (~given.isfinite()).any(dim=1)
    if bool(broken.any()):
        raise BadValue(
            f"Row {int(broken.nonzero()[0])} of soft_labels has a value that is NaN or infinite.",
            "check how they were computed; in fp16, values beyond 65504 are infinite",
        )
    if stated is not None and stated not in KINDS:
        what = repr(stated) if isinstance(stated, str) else described(stated)
        raise BadValue(f"soft_label_kind is {what}.", f"give {' or '.join(KINDS)}")
    negative = (given < 0).any(dim=1)
    if stated == "logits" or (stated is None and bool(negative.any())):
        return "logits"
    if bool(negative.any()):
        row = int(negative.nonzero()[0])
        raise BadValue(
            f"Row {row} of soft_labels has {float(given[row].min()):.4g}, which is not a probability.",
            f"state logits with {_HOW_TO_STATE}, or give probabilities",
        )
    wrong = _wrong_sum(given)
    if wrong and stated is None:
        raise BadValue(
            f"soft_labels have no value below 0, as logits have, and row {wrong[0]} sums to {wrong[1]:.4g}, where "
            "probabilities sum to 1.",
            f"normalise the rows, or state what they are with {_HOW_TO_STATE}",
        )
    if wrong:
        raise BadValue(
            f"Row {wrong[0]} of soft_labels sums to {wrong[1]:.4g}, where probabilities sum to 1.",
            "normalise the rows: soft_labels / soft_labels.sum(1, keepdim=True)",
        )
    return "probabilities"


def _agreement(
    soft: SoftLabels, labels: torch.Tensor, given: torch.Tensor, order: StatedOrder | None, info: ClassList
) -> Note:
    """How many images have their largest soft label at their class; raises for permuted rows or columns.

    ``given``: the columns as they were before they were brought from the stated ``order`` to the dataset's.
    """
    from scipy.stats import binom

    count, num_classes = len(labels), info.num_classes
    agreeing = int((soft.values.argmax(dim=1) == labels).sum())
    fact = f"the largest of an image's soft labels is at its class for {agreeing} of {count} images"
    largest = given.argmax(dim=1)
    columns = best_permutation(labels, largest, num_classes).tolist()
    better = int((torch.tensor(columns)[labels] == largest).sum())
    # With one image of each class a perfect permutation always exists, so it proves nothing.
    if better - agreeing >= _MIN_GAIN * count and count > num_classes:
        meant = list(range(num_classes)) if order is None else order.bring(range(num_classes), info)
        owner = "dataset's" if order is None else "stated"
        first = next(label for label, column in enumerate(columns) if meant[column] != label)
        raise ClassOrderError(
            f"The columns of soft_labels look permuted: {fact}, with another order it would be for {better}; class "
            f"{info.class_ids[first]} is column {columns[first]}, not {meant.index(first)}.",
            f"bring them to the {owner} class order: soft_labels[:, {[columns[label] for label in meant]}]",
        )
    if 2 * agreeing < count and float(binom.sf(agreeing - 1, count, 1 / num_classes)) > _LEVEL:
        raise BadValue(
            f"soft_labels do not belong to these images: {fact}, which is not significantly better than chance.",
            "give their rows in the order of the images, and their columns in the dataset's class order",
        )
    return Note(f"soft labels: {fact}", doubtful=agreeing < _EXPECTED_AGREEMENT * count)
