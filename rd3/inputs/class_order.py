"""Class orders that a file or a column states, and labels brought from them to the dataset's order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rd3.errors import ClassOrderError

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


def plain_name(name: str) -> str:
    """A class name without the parts that differ between sources: case, underscores, further synonyms."""
    return name.split(",")[0].replace("_", " ").replace("-", " ").strip().lower()


@dataclass(frozen=True)
class StatedOrder:
    """A class order as its file states it: the name of each label."""

    names: Mapping[int, str]
    where: str
    """The file and the field, for messages."""

    @classmethod
    def read(cls, value: Any, where: str) -> StatedOrder:
        """A list of names, ``{name: label}``, ``{label: name}`` or JSON of these; raises :class:`ClassOrderError`."""
        pairs = _pairs(_plain(value))
        names = dict(pairs or ())
        if not pairs or len(names) < len(pairs) or len(set(names.values())) < len(names):
            raise ClassOrderError(f"{where} states a class order that cannot be read.", FIX)
        return cls(names, where)

    def labels_in(self, info: ClassList) -> dict[int, int]:
        """The dataset's label of every stated label that it has."""
        plain = {label: plain_name(name) for label, name in self.names.items()}
        by_naming = [
            {label: known[name] for label, name in plain.items() if name in known}
            for known in (_numbered(info.class_ids), _numbered(info.class_names))
        ]
        return max(by_naming, key=len)

    def bring(self, labels: Sequence[int], info: ClassList) -> list[int]:
        """Labels in the dataset's order; raises :class:`ClassOrderError` for one whose class it does not have."""
        known = self.labels_in(info)
        for label in labels:
            if label not in known:
                stated = f"as {self.names[label]!r}" if label in self.names else "not at all"
                raise ClassOrderError(
                    f"{self.where} lists class {label} {stated}, which is not among the classes of {info.name}: "
                    f"{', '.join(info.class_ids[:3])} ...",
                    FIX,
                )
        return [known[label] for label in labels]


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {plain_name(name): label for label, name in enumerate(names)}


def _plain(value: Any) -> Any:
    """Lists and mappings from arrays, tensors, JSON text, or names separated by commas or lines."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return [part.strip() for part in value.replace("\n", ",").split(",") if part.strip()]
    return value


def _pairs(value: Any) -> list[tuple[int, str]]:
    """(label, name) of every class; empty if this is not a class order."""
    if isinstance(value, Mapping):
        items = list(value.items())
        if all(_is_label(label) for _name, label in items):
            return [(int(label), str(name)) for name, label in items]
        if all(_is_label(label) and isinstance(name, str) for label, name in items):
            return [(int(label), name) for label, name in items]
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    if not all(isinstance(name, (str, int)) and not isinstance(name, bool) for name in value):
        return []
    return [(label, str(name)) for label, name in enumerate(value)]


def _is_label(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal())
