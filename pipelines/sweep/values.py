"""A sweep as a value object, with names and numbers validated but not yet resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pipelines.grid.values import Chosen, Grid, Part
from rd3.protocol import number_type
from rd3.values import Frozen

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "successive_halving", "hyperband", "none"]


class Dimension(Frozen):
    """One protocol field of the space: a list of choices, or a range."""

    field: str
    choices: tuple[Any, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    """Ends of a range, both included."""
    log: bool = False
    """Whether a range is sampled logarithmically."""
    step: float | int | None = None

    @property
    def integer(self) -> bool:
        """Whether a range contains integers, by the type of the field."""
        return number_type(self.field) is int

    @property
    def choices_or_ends(self) -> tuple[Any, ...]:
        """Its choices, or the two ends of its range."""
        return self.choices or (self.low, self.high)

    @property
    def count(self) -> int | None:
        """Number of values; None for a continuous range."""
        if self.choices:
            return len(self.choices)
        low, high = self.choices_or_ends
        return None if self._spacing is None else round((high - low) / self._spacing) + 1

    @property
    def _spacing(self) -> float | int | None:
        """Difference of neighbouring values of a range; None if it is continuous."""
        return self.step or (1 if self.integer and not self.log else None)

    def values(self) -> tuple[Any, ...] | None:
        """All values in order; None for a continuous range."""
        if self.choices or self.count is None:
            return self.choices or None
        low, step = self.low or 0, self._spacing or 0
        values = [low + number * step for number in range(self.count)]
        return tuple(int(value) if self.integer else round(value, 12) for value in values)


class Sweep(Frozen):
    """A whole sweep file."""

    name: str
    description: str = ""
    methods: tuple[Chosen, ...]
    dataset: str
    ipc: int
    teacher: str
    """Teacher role."""
    student: str | None = None
    """None: the network of the teacher."""
    protocol: Chosen
    """The base protocol, with fixed overrides."""
    space: tuple[Dimension, ...]
    trials: int
    """Number of trials per method."""
    batch: int = 4
    """Number of trials that are proposed together, without results of each other."""
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    validate_epochs: int = 5
    """Epochs between validation steps."""
    seed: int = 0
    """Random seed of the sampler."""
    set_seed: int = 0
    student_seeds: tuple[int, ...] = (0,)
    """The score of a trial is the mean over these."""
    test_seeds: tuple[int, ...] = (0, 1, 2)
    """Student seeds of the winner's test."""
    text: str = ""
    """The text of the file."""
    source: str = ""
    """What the user called the file, such as its path."""

    @property
    def asked(self) -> dict[str, Any]:
        """The fields that affect the tuning, as plain data: without names, text, methods and test seeds."""
        others = {"name", "description", "text", "source", "methods", "test_seeds"}
        return self.model_dump(mode="json", exclude=others)

    def validation_grid(self, methods: tuple[Chosen, ...]) -> Grid:
        """The grid of the base protocol on validation images, with its sets and teachers: the baseline of the sweep."""
        return Grid(
            name=f"{self.name}-validation",
            description=self.description,
            test_on="validation",
            parts=(self._part(methods, (self.protocol,), self.student_seeds),),
            text=self.text,
        )

    def test_grid(self, winners: Mapping[str, str]) -> Grid:
        """The grid of base and winners (label to preset name) on the test split, with sets from all training images."""
        labels = labelled(self.methods)
        return Grid(
            name=f"{self.name}-test",
            description=self.description,
            parts=tuple(
                self._part((labels[label],), (self.protocol, Chosen(name=preset)), self.test_seeds)
                for label, preset in winners.items()
            ),
            text=self.text,
        )

    def _part(self, methods: tuple[Chosen, ...], protocols: tuple[Chosen, ...], seeds: tuple[int, ...]) -> Part:
        return Part(
            methods=methods,
            datasets=(self.dataset,),
            ipc=(self.ipc,),
            teacher={self.dataset: self.teacher},
            students=(self.student,) if self.student else None,
            protocols=protocols,
            set_seeds=(self.set_seed,),
            student_seeds=seeds,
        )


def labelled(methods: Iterable[Chosen]) -> dict[str, Chosen]:
    """Methods by label; repeated methods with different settings are numbered."""
    named: dict[str, Chosen] = {}
    for chosen in methods:
        again = sum(other.name == chosen.name for other in named.values())
        named[f"{chosen.name}-{again + 1}" if again else chosen.name] = chosen
    return named
