"""A grid as a value: what was asked for, names and numbers checked, nothing resolved yet."""

from __future__ import annotations

from typing import Any, Literal

from rd3.values import Frozen, digest


class Chosen(Frozen):
    """A method or a protocol that a grid names, with what it sets there."""

    name: str
    values: dict[str, Any] = {}


class Part(Frozen):
    """One full product; a grid is one of these, or several (``also``)."""

    methods: tuple[Chosen, ...]
    datasets: tuple[str, ...]
    ipc: tuple[int, ...]
    teacher: dict[str, str]
    """Dataset to role."""
    students: tuple[str, ...] | None = None
    """None: the network of each dataset's teacher."""
    protocols: tuple[Chosen, ...] = (Chosen(name="rd3"),)
    protocol: dict[str, Any] = {}
    """Protocol fields set for all ``protocols``."""
    set_seeds: tuple[int, ...] = (0,)
    student_seeds: tuple[int, ...] = (0, 1, 2)
    vary: dict[str, tuple[Any, ...]] = {}
    """Protocol fields to move one at a time around the base point, which is run as well."""

    def points(self) -> list[dict[str, Any]]:
        """The base point, then every varied field with each of its values."""
        return [{}, *({field: value} for field, values in self.vary.items() for value in values)]


class Grid(Frozen):
    """A whole grid file."""

    name: str
    description: str = ""
    timing: Literal["shared", "exclusive"] = "shared"
    """``exclusive``: nothing else runs while a set is made, for a clean wall time."""
    test_on: Literal["test", "validation"] = "test"
    """``validation``: sets and teachers are made from the training images without the validation part."""
    parts: tuple[Part, ...]
    text: str = ""
    """The file as it was written."""

    @property
    def key(self) -> str:
        """Hash of what the grid asks for; name, description and layout of the file do not count."""
        return digest(self.model_dump(mode="json", exclude={"name", "description", "text"}))
