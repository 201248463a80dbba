"""A grid as a value object, with names and numbers validated but not yet resolved."""

from __future__ import annotations

from typing import Any, Literal

from rd3.claims import Claim
from rd3.values import Frozen, digest, neutral, without_neutral

SETS = "sets"
"""The value that makes an item of ``methods`` a name for imported sets."""


class Chosen(Frozen):
    """A method or a protocol in a grid, with the values set for it; or a name for imported sets."""

    name: str
    values: dict[str, Any] = {}

    @property
    def sets(self) -> tuple[str, ...]:
        """Keys of the imported sets that the name stands for; empty for a method and a protocol."""
        return tuple(self.values.get(SETS, ()))


class Part(Frozen):
    """One Cartesian product; a grid consists of one or several (``also``)."""

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
    label_teachers: tuple[str, ...] = neutral(())
    """Roles of the teachers that give soft labels together; empty: ``teacher`` alone."""
    vary: dict[str, tuple[Any, ...]] = {}
    """Protocol fields to vary one at a time around the base point, which is run as well."""
    setting: str = ""
    """Name of the part in tables."""
    paper: dict[str, str] = {}
    """Where the paper prints the values of this part: number of the table, and the beginning of its ``config``."""

    def points(self) -> list[dict[str, Any]]:
        """The base point, then every varied field with each of its values."""
        return [{}, *({field: value} for field, values in self.vary.items() for value in values)]


_NOT_IN_KEY = ("name", "description", "claim", "embedding", "text", "source", "small")
CALIBRATION = "calibration"
"""The measure of ``robustness`` that is always included; the others are corruptions."""


class Grid(Frozen):
    """A whole grid file."""

    name: str
    description: str = ""
    timing: Literal["shared", "exclusive"] = "shared"
    """``exclusive``: nothing else runs while a set is generated, for undisturbed wall times."""
    test_on: Literal["test", "validation"] = "test"
    """``validation``: sets and teachers use the training images without the validation split."""
    keep_students: bool = neutral(False)
    """Keep the weights of every student; evaluations that were stored without them run again."""
    robustness: tuple[str, ...] = neutral(())
    """What is measured with the weights of every student: ``calibration`` and names of corruptions; empty: nothing."""
    parts: tuple[Part, ...]
    claim: Claim | None = None
    """What heads the report, with the verdict of the results."""
    embedding: bool = False
    """Whether the report has t-SNE maps of the features of synthetic and real images."""
    text: str = ""
    """The text of the file."""
    source: str = ""
    """What the user called the file, such as its path, by which errors name it; empty without a file."""
    small: bool = False
    """Whether it is the demonstration size of the file."""

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions under which students are measured."""
        return tuple(name for name in self.robustness if name != CALIBRATION)

    @property
    def key(self) -> str:
        """Hash of the grid's content; independent of names, description and layout of the file."""
        plain = without_neutral(self)
        for part in plain["parts"]:
            del part["setting"], part["paper"]
        return digest({name: value for name, value in plain.items() if name not in _NOT_IN_KEY})
