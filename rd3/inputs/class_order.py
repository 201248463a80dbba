"""Class orders that a file or a column states, and labels brought from them to the dataset's order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rd3.errors import ClassOrderError
from rd3.inputs.names import match_names
from rd3.lazy import torch

FIX = "number the labels in the dataset's class order (rd3 list datasets), and leave out the stated one"


class ClassList(Protocol):
    """The part of a dataset's description that labels are checked against."""

    @property
    def name(self) -> str: ...
    @property
    def class_ids(self) -> tuple[str, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def resolution(self) -> int: ...


@dataclass(frozen=True)
class StatedOrder:
    """A class order as its file states it: the name of each label."""

    names: Mapping[int, str]
    where: str
    """The file and the field, for messages."""

    @classmethod
    def read(cls, value: Any, where: str) -> StatedOrder:
        """From any form that :func:`name_of_each_label` reads; raises :class:`ClassOrderError` for others."""
        names = name_of_each_label(value)
        if not names or len(set(names.values())) < len(names):
            raise ClassOrderError(f"{where} states a class order that cannot be read.", FIX)
        return cls(names, where)

    def bring(self, labels: Sequence[int], info: ClassList) -> list[int]:
        """Labels in the dataset's order; raises :class:`ClassOrderError` for one whose class it does not have."""
        known = labels_by_name(self.names.values(), info)
        for label in labels:
            if self.names.get(label) not in known:
                stated = f"as {self.names[label]!r}" if label in self.names else "not at all"
                raise ClassOrderError(
                    f"{self.where} lists class {label} {stated}, which is not among the classes of {info.name}: "
                    f"{', '.join(info.class_ids[:3])} ...",
                    FIX,
                )
        return [known[self.names[label]] for label in labels]


def labels_by_name(names: Iterable[str], info: ClassList) -> dict[str, int]:
    """The dataset's label of every name that is one of its class ids, or of its class names if more are these."""
    return max((match_names(names, naming) for naming in (info.class_ids, info.class_names)), key=len)


def best_permutation(labels: torch.Tensor, outputs: torch.Tensor, num_classes: int) -> np.ndarray:
    """(C,) the output that stands for each class in the one-to-one assignment that agrees most with ``labels``.

    ``labels`` and ``outputs`` are (N,) integers from 0 to ``num_classes`` - 1.
    """
    from scipy.optimize import linear_sum_assignment

    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels.numpy(), outputs.numpy()), 1)
    return np.asarray(linear_sum_assignment(confusion, maximize=True)[1])


def name_of_each_label(value: Any) -> dict[int, str]:
    """The name of every class by its label; empty if ``value`` is not a list of classes, or gives a label twice.

    Read are a list of names, also as the only value of a mapping, ``{name: label}`` as torchvision's ``class_to_idx``,
    ``{label: name}``, and ``{label: [id, name]}`` as Keras publishes for ImageNet; also as arrays, as JSON text, and as
    text with a name per line or, on one line, names separated by commas.
    """
    plain = _without_arrays(value)
    if isinstance(plain, Mapping) and len(plain) == 1 and not any(map(_is_label, plain)):
        [only] = plain.values()
        plain = only if isinstance(only, list) else plain
    if isinstance(plain, Mapping):
        pairs = _of_mapping(list(plain.items()))
        names_of = dict(pairs)
        return names_of if len(names_of) == len(pairs) else {}
    names = [_identifier(name) for name in plain] if isinstance(plain, (list, tuple)) else []
    return dict(enumerate(map(str, names))) if all(map(_is_name, names)) else {}


def _without_arrays(value: Any) -> Any:
    """Lists and mappings from arrays, tensors and text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return _of_text(value) if isinstance(value, str) else value


def _of_text(text: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Names may contain commas themselves: "tench, Tinca tinca".
    return lines if len(lines) > 1 else [part.strip() for part in text.split(",") if part.strip()]


def _of_mapping(items: list[tuple[Any, Any]]) -> list[tuple[int, str]]:
    """(label, name) pairs of ``{name: label}`` or ``{label: name}``; of two digits the label is the one not in text."""
    keyed = all(_is_label(key) for key, _value in items)
    if all(_is_label(label) and not (keyed and isinstance(label, str)) for _name, label in items):
        return [(int(label), str(name)) for name, label in items]
    named = [(key, _identifier(value)) for key, value in items]
    if keyed and all(isinstance(name, str) for _label, name in named):
        return [(int(label), name) for label, name in named]
    return []


def _identifier(name: Any) -> Any:
    """The identifier in ``[identifier, name]``."""
    return name[0] if isinstance(name, (list, tuple)) and name else name


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_label(value: Any) -> bool:
    """Whether it is an integer or one in text."""
    return _is_name(value) and (isinstance(value, int) or (value.isdecimal() and len(value) < 20))
