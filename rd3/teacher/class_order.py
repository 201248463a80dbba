"""Which output of a classifier is which class: lists of classes, and the outputs that they select."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rd3.datasets import DatasetInfo, dataset_info
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.foreign_files import read_text
from rd3.inputs.class_order import name_of_each_label

FOUND = "found"
"""In place of a list of classes: the order that the network's own predictions show."""


def read_class_order(path: Path | str) -> tuple[str, ...]:
    """The class of each output of a classifier, from a file.

    A class per line, or JSON in a form of :func:`name_of_each_label`.  Raises DataMissing or DataCorrupt.
    """
    path = Path(path)
    if not path.is_file():
        raise DataMissing(f"There is no file {path}.", f"give a file with a class per line, or `{FOUND}`")
    names = name_of_each_label(read_text(path))
    if not names or set(names) != set(range(len(names))):
        raise DataCorrupt(
            f"{path} is not a list of classes.",
            "write the class of each output on a line of its own, or as JSON: a list, or classes with their outputs as "
            "in class_to_idx",
        )
    return tuple(names[output] for output in range(len(names)))


def outputs_of(order: Sequence[str], info: DatasetInfo) -> list[int]:
    """The output of each class of the dataset, where ``order`` lists the classes of the outputs.

    Classes are named by id, by name, or by label.  Outputs of other classes are left out.  Raises
    :class:`ClassOrderError` for a class of the dataset that is missing or listed twice.
    """
    stated = [str(name).strip() for name in order]
    namings = (info.class_ids, info.class_names, tuple(str(label) for label in range(info.num_classes)))
    # the naming that most entries use
    naming = max(namings, key=lambda names: len(set(names) & set(stated)))
    for name in naming:
        if stated.count(name) != 1:
            raise ClassOrderError(
                f"The class order names {name!r} of {info.name} {stated.count(name)} times, expected once; it has "
                f"{len(stated)} entries, which begin {', '.join(map(repr, stated[:3]))}.",
                f"name every class of {info.name} once, by id, name or label, in the order of the classifier's outputs",
            )
    return [stated.index(name) for name in naming]


def imagenet_outputs(class_ids: tuple[str, ...], dataset: str) -> list[int]:
    """The outputs of these wnids in a classifier of the thousand classes of ImageNet-1K."""
    place = {wnid: index for index, wnid in enumerate(dataset_info("imagenet1k").class_ids)}
    strange = [name for name in class_ids if name not in place]
    if strange:
        raise ClassOrderError(
            f"Class {strange[0]!r} of {dataset} is not an ImageNet-1K class, so the classifier has no output for it.",
            "give the class of each output instead, a line per output: --class-order FILE",
        )
    return [place[name] for name in class_ids]


def suggest_fix(outputs: int, info: DatasetInfo) -> str:
    """How to import a classifier of another number of classes than the dataset's."""
    whole = set(dataset_info("imagenet1k").class_ids)
    if outputs == len(whole) and whole.issuperset(info.class_ids):
        return f"keep the outputs of {info.name}'s classes: --prune"
    if outputs > info.num_classes:
        return (
            f"import it for its own dataset, or state the class of each of its {outputs} outputs, a line per output, "
            f"'-' for an output that {info.name} does not have: --class-order FILE"
        )
    return "import it for its own dataset"


def check_class_order_options(prune: bool, class_order: str | Sequence[str] | None) -> None:
    """Raise :class:`BadValue` if both options are given, or a string where a list is expected."""
    if prune and class_order is not None:
        raise BadValue("Pruning and a class order are both given.", "give one of them")
    if isinstance(class_order, str) and class_order != FOUND:
        raise BadValue(f"Class order {class_order!r} is a string.", f"give {FOUND!r} or the list of classes")
