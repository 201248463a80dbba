"""Rules of protocol presets: values that hold for some datasets, students and images per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rd3.errors import BadValue, UnknownName
from rd3.values import Frozen


class Case(NamedTuple):
    """What a preset is resolved for; None where a fact is not known."""

    same_network: bool
    """Whether student and label teacher have the same architecture."""
    student: str | None = None
    dataset: str | None = None
    classes: int | None = None
    ipc: int | None = None


_FACTS = {"students": "student", "datasets": "dataset", "ipc": "ipc", "classes": "classes"}
"""Field of a condition to field of a case."""


class Numbers(Frozen):
    """Some integers: a list, or all from ``min`` to ``max``, both included and either open."""

    any_of: tuple[int, ...] | None = None
    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, int) else value
        return {"any_of": listed} if isinstance(listed, list | tuple) else value

    @model_validator(mode="after")
    def _not_empty(self) -> Numbers:
        if not self.any_of and self.min is None and self.max is None:
            raise ValueError("expected a list of integers, or {min: , max: }")
        if self.any_of and (self.min is not None or self.max is not None):
            raise ValueError("expected either a list of integers or bounds, got both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}")
        return self

    @model_serializer
    def _plain(self) -> list[int] | dict[str, int]:
        if self.any_of:
            return list(self.any_of)
        return {name: bound for name, bound in (("min", self.min), ("max", self.max)) if bound is not None}

    def __contains__(self, number: int) -> bool:
        if self.any_of:
            return number in self.any_of
        return (self.min is None or self.min <= number) and (self.max is None or number <= self.max)


class Condition(Frozen):
    """When a rule applies: all that is stated must hold."""

    students: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of networks."""
    datasets: tuple[str, ...] | None = Field(default=None, min_length=1)
    ipc: Numbers | None = None
    """Images per class."""
    classes: Numbers | None = None
    """Number of classes."""
    same_network: bool | None = None
    """Whether student and label teacher have the same architecture."""

    @model_validator(mode="after")
    def _states_something(self) -> Condition:
        if not self._stated():
            raise ValueError("states no condition; values for every student belong in `all`")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if value is not None}

    def _stated(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}

    @property
    def facts(self) -> frozenset[str]:
        """The fields of a :class:`Case` that it asks for, besides ``same_network``."""
        return frozenset(_FACTS[name] for name in self._stated() if name in _FACTS)

    def holds(self, case: Case) -> bool:
        """Whether it holds; raises :class:`BadValue` if it asks for a fact that is not known."""
        if self.same_network is not None and self.same_network != case.same_network:
            return False
        return all(_known(case, _FACTS[name]) in wanted for name, wanted in self._stated().items() if name in _FACTS)


def _known(case: Case, fact: str) -> Any:
    value = getattr(case, fact)
    if value is None:
        raise BadValue(f"A rule of the preset depends on {fact}, which is not given.", f"give {fact} to the call")
    return value


class Rule(Frozen):
    """Values by name that hold under a condition."""

    when: Condition
    then: Mapping[str, Any] = Field(min_length=1)


def check_names(
    rules: Sequence[Rule], where: str, *, network: Callable[[str], object], dataset: Callable[[str], object]
) -> None:
    """Check the names of students and datasets in conditions: a rule with an unknown one would never apply.

    ``network`` and ``dataset`` look up a name, plugins' and the user's own included, and raise :class:`UnknownName`,
    which is raised with the place of the name; ``where`` names the preset.
    """
    for place, rule in enumerate(rules):
        for field, look_up in (("students", network), ("datasets", dataset)):
            for name in getattr(rule.when, field) or ():
                try:
                    look_up(name)
                except UnknownName as error:
                    at = f"{where}, rules.{place}.when.{field}"
                    raise UnknownName(f"{at}: {error.message}", error.fix) from None
