"""Checks of a sweep's search space: valid values, and fields that have an effect."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipelines.grid.located_yaml import Path
from pipelines.grid.structure import SENTENCES, Sentence, Structure, check_repeats, check_structure, what
from pipelines.sweep.values import Dimension
from rd3.augmentations import AUGMENTATIONS
from rd3.errors import RD3Error
from rd3.losses import LOSSES
from rd3.protocol import EvalProtocol, UnresolvedValues, left_of, mistakes_in, number_type, protocol_names
from rd3.registry import did_you_mean

if TYPE_CHECKING:
    from pipelines.grid.check import PartCheck

MOST_POINTS = 100_000
"""Maximum number of points of sampler ``grid``, which Optuna keeps in memory."""
MOST_STEPS = 2**31
"""Maximum number of steps of a range."""
_JOINT = (
    "labels", "loss", "soft_labels", "label_top_k", "label_epochs", "label_reuse", "teacher_mode", "epochs",
    "test_resize",
)  # fmt: skip
"""Fields whose values, each valid, may contradict each other (:meth:`rd3.protocol.EvalProtocol.contradictions`) or not
fit the dataset (:meth:`rd3.protocol.EvalProtocol.require_fit`)."""
Resolve = Callable[[dict[str, Any]], EvalProtocol]
"""Values by name to the sweep's protocol with these overrides, but those without effect (:mod:`rd3.protocol`'s
``fitting``), such as ``drop_at`` under another schedule than multistep."""


class RangeStructure(Structure):
    """The keys of a range."""

    low: Any
    high: Any
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None


class IntegerRangeStructure(RangeStructure):
    """The keys of a range of integers."""

    step: Annotated[int, Field(gt=0)] | None = None


RANGE_SENTENCES = {
    "missing": Sentence("The range has no {key!r}.", "write {{low: ..., high: ...}}"),
    "extra_forbidden": SENTENCES["extra_forbidden"],
    "bool_type": Sentence("Expected true or false, got {what}."),
    **{
        kind: Sentence(f"Expected {number} above 0, got {{what}}.")
        for kind, number in (("int_type", "an integer"), ("float_type", "a number"), ("greater_than", "a number"))
    },
}


class SpaceCheck:
    """Checks ``space``.

    ``resolve(values)`` is the protocol with these values, ``fixed`` what the file sets in ``protocol``, and ``size``
    the number of images of the set, if known.
    """

    def __init__(self, check: PartCheck, resolve: Resolve, size: int | None, fixed: dict[str, Any]):
        self.check, self.document = check, check.document
        self.resolve, self.size, self.fixed = resolve, size, fixed
        self.base = resolve({})

    def dimensions(self, space: dict[str, Any], sampler: str | None, trials: int | None) -> tuple[Dimension, ...]:
        """Check every field by itself, then the fields together; returns the valid dimensions."""
        found = [self._dimension(field, value) for field, value in space.items()]
        good = tuple(dimension for dimension in found if dimension is not None)
        if len(good) == len(found):
            self._labels(good)
            self._own_labels(good)
            for dimension in good:
                self._matters(dimension, good)
            if sampler == "grid":
                self._countable(good, trials)
            if not self.document.problems:
                self._consistent(good)
        return good

    def _problem(self, path: Path, message: str, fix: str = "") -> None:
        self.document.problem(("space", *path), message, fix)

    def _dimension(self, field: str, value: Any) -> Dimension | None:
        if any(path[:2] == ("space", field) for path in self.document.unreadable):  # and reported
            return None
        before = len(self.document.problems)
        # Fields, settings of losses (`temperature`) and of steps of the augmentation (`flip.probability`).
        known = [name for name in protocol_names() if name != "test_epochs"]
        if field == "test_epochs":
            self._problem(
                (field,), "This field decides only when a trial is validated, not its result.", "use `validate_epochs`"
            )
        elif field in UnresolvedValues.model_fields:  # image_steps, which become epochs by the size of the set
            self._problem((field,), "All trials of a sweep train on sets of one size.", "use `epochs`")
        elif field not in known:
            self._problem((field,), f"A protocol has no field {field!r}.", did_you_mean(field, known))
        elif field in self.fixed:
            self._problem((field,), "This field is also set in 'protocol'.", "remove it from one of the two")
        elif field == "loss" and (lost := sorted(self.fixed.keys() - left_of(self.fixed, {"loss": value}).keys())):
            message = f"{lost[0]} of 'protocol' would not be used, as a tuned loss starts from its own settings."
            self._problem((field,), message, f"fix the loss, or remove {lost[0]} there")
        elif isinstance(value, list):
            self._choices(field, value)
            value = {"choices": tuple(value)}
        elif isinstance(value, dict):
            self._range(field, value)
        else:
            message = f"Expected a range or a list of choices, got {what(value)}."
            self._problem((field,), message, "write {low: ..., high: ...} or [...]")
        return Dimension(field=field, **value) if len(self.document.problems) == before else None

    def _value(self, field: str, value: Any, *place: str | int) -> None:
        """Check one value against its field."""
        path = ("space", field, *place)
        if isinstance(value, list | dict):
            self.document.problem(path, f"Expected a scalar, got {what(value)}.", "vary individual settings")
            return
        right = self.check.is_right(path, value, partial(mistakes_in, field, value))
        if right and field == "batch_size" and value < 2:
            self._problem(
                (field, *place), f"Batch normalisation needs at least two images, got {value}.", "start at 2 or more"
            )
        if right and field == "loss":
            try:
                LOSSES.get(value)
            except RD3Error as error:
                self._problem((field, *place), error.message, error.fix)
        elif right and "." in field:  # the base protocol may not have this step of the augmentation
            try:
                self.resolve({field: value})
            except RD3Error as error:
                self._problem((field, *place), error.message, error.fix)

    def _choices(self, field: str, values: list[Any]) -> None:
        if len(values) < 2:
            content = f"only {values[0]!r}" if values else "nothing"
            self._problem((field,), f"There is no choice: the list contains {content}.", "give at least two values")
        check_repeats(self.document, values, ("space", field))
        for place, value in enumerate(values):
            self._value(field, value, place)

    def _range(self, field: str, value: dict[str, Any]) -> None:
        kind = number_type(field)
        if kind is None:
            self._problem((field,), f"The field {field!r} is not a number.", "give a list of choices")
            return
        before = len(self.document.problems)
        model = IntegerRangeStructure if kind is int else RangeStructure
        check_structure(self.document, model, value, partial(_in_space, field), "A range", RANGE_SENTENCES)
        for end in ("low", "high"):
            if end in value and value[end] is None:  # which is a value of some fields
                self._problem((field, end), "Expected a number, got nothing.", "write a number, or give choices")
            elif end in value:
                self._value(field, value[end], end)
        if len(self.document.problems) > before:
            return
        low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
        if low >= high:
            fault = "is empty" if low > high else "contains only one value"
            self._problem((field,), f"The range from {low} to {high} {fault}.", "make 'high' larger than 'low'")
        elif log and step is not None:
            self._problem((field, "step"), "A logarithmic range has no steps.", "remove 'log' or 'step'")
        elif log and low <= 0:
            self._problem((field, "low"), f"A logarithmic range cannot start at {low}.", "start above 0")
        elif step is not None and (high - low) / step > MOST_STEPS:
            self._problem(
                (field, "step"), f"Steps of {step} from {low} to {high} are too many.", "choose a larger step"
            )
        elif step and not math.isclose((high - low) / step, max(1, round((high - low) / step)), abs_tol=1e-9):
            self._problem(
                (field, "step"), f"Steps of {step} from {low} do not reach {high}.", "choose another step or end"
            )

    def _consistent(self, space: tuple[Dimension, ...]) -> None:
        """Report the first point that contradicts itself, by the values that do so: its trial could not run.

        The ends of a range stand for all of it: a contradiction between numbers is an inequality, which an end violates
        if any value does.
        """
        moved = [one for one in space if one.field in _JOINT]
        for values in itertools.product(*(one.choices or (one.low, one.high) for one in moved)):
            point = {one.field: value for one, value in zip(moved, values, strict=True)}
            if self._contradiction(point):
                for field in list(point):
                    rest = {name: value for name, value in point.items() if name != field}
                    point = rest if self._contradiction(rest) else point
                named = " and ".join(f"{name} {value!r}" for name, value in point.items())
                message = f"A trial cannot have {named}. {self._contradiction(point)}"
                self._problem((next(iter(point)),), message, "remove one of these values, or fix another field")
                return

    def _contradiction(self, moved: dict[str, Any]) -> str:
        """Why a point is not possible; empty if it is."""
        try:
            self.resolve(moved)
        except RD3Error as error:
            return error.message
        return ""

    def _possible(self, field: str, space: tuple[Dimension, ...]) -> tuple[Any, ...]:
        """Values that a field may have in a trial; for a range, its ends."""
        moved = next((dimension for dimension in space if dimension.field == field), None)
        if moved is not None:
            return moved.choices or (moved.low, moved.high)
        return (self.base.loss.name if field == "loss" else self.base.value(field),)

    def _own_labels(self, space: tuple[Dimension, ...]) -> None:
        """Report ``soft_labels: own``, as generated sets have no labels of their own."""
        if "own" in self._possible("soft_labels", space):
            moved = any(dimension.field == "soft_labels" for dimension in space)
            message = "The sets of a sweep have no soft labels of their own."
            self.document.problem(("space", "soft_labels") if moved else ("protocol",), message, "remove 'own'")

    def _labels(self, space: tuple[Dimension, ...]) -> None:
        """Check that labels and loss are consistent: hard labels use cross-entropy, soft labels any other loss."""
        fields = {dimension.field: dimension for dimension in space}
        if "labels" in fields and self.base.labels == "hard":
            self._problem(("labels",), "The base protocol has hard labels.", "choose one with soft labels")
        elif "loss" in fields and "ce" in fields["loss"].choices:
            place = fields["loss"].choices.index("ce")
            fix = "remove it, and add `labels: [soft, hard]` to the space"
            self._problem(("loss", place), "Loss 'ce' is used with hard labels only.", fix)
        elif "loss" in fields and self.base.labels == "hard":
            self._problem(("loss",), "Hard labels use the loss 'ce' only.", "choose a base protocol with soft labels")

    def _losses(self, space: tuple[Dimension, ...]) -> set[str]:
        """Losses that a trial may use."""
        labels = self._possible("labels", space)
        soft = set(self._possible("loss", space)) if "soft" in labels else set()
        return soft | ({"ce"} if "hard" in labels else set())

    def _matters(self, dimension: Dimension, space: tuple[Dimension, ...]) -> None:
        """Report a field that has no effect on the result."""
        field = dimension.field
        reasons = {
            "teacher_mode": "" if "soft" in self._possible("labels", space) else "hard labels need no teacher",
            "beta2": "" if "adamw" in self._possible("optimizer", space) else "the optimizer is sgd",
            "batch_size": self._capped(dimension),
            **dict.fromkeys(
                ("drop_at", "drop_factor"),
                "" if "multistep" in self._possible("schedule", space) else "no trial has the schedule multistep",
            ),
            "warmup_start": "" if any(self._possible("warmup_epochs", space)) else "no trial has a warm-up",
            "zeta": "the schedule is multistep" if set(self._possible("schedule", space)) == {"multistep"} else "",
            "hybrid": "a single teacher provides the labels",  # sweeps have no `label_teachers`
            "soft_labels": "" if "soft" in self._possible("labels", space) else "the labels are hard",
            **dict.fromkeys(("label_dtype", "label_top_k"), self._unstored(space, "once", "stored")),
            "label_epochs": self._unstored(space, "stored"),
            "label_reuse": self._unstored(space, "stored")
            or ("" if any(self._possible("label_epochs", space)) else "every epoch has labels of its own"),
        }
        if "." in field:
            reason = self._without_effect(field, space)
        elif field in EvalProtocol.model_fields:
            reason = reasons.get(field, "")
        else:
            reason = self._unread(field, space)
        if reason:
            self._problem((field,), f"This field has no effect here: {reason}.", "remove it from the space")

    def _unstored(self, space: tuple[Dimension, ...], *regimes: str) -> str:
        """Why fields of stored labels have no effect: no trial has one of these ``soft_labels``; empty if one has."""
        if set(regimes) & set(self._possible("soft_labels", space)):
            return ""
        return f"no trial has soft_labels {' or '.join(map(repr, regimes))}"

    def _without_effect(self, field: str, space: tuple[Dimension, ...]) -> str:
        """Why a setting of an augmentation has no effect (no trial uses it); empty if it has.

        Steps without effect, such as a patch shuffle with grid 1, are dropped, so a step may be used at some values
        only.
        """
        step = field.rpartition(".")[0]
        moved = [
            {one.field: value} for one in space if "." in one.field for value in one.choices or (one.low, one.high)
        ]
        if any(step == each.name for values in [{}, *moved] for each in self.resolve(values).augmentation):
            return ""
        return f"no trial uses {step}"

    def _unread(self, field: str, space: tuple[Dimension, ...]) -> str:
        losses = self._losses(space)
        if any(field in LOSSES.get(loss).Settings.model_fields for loss in losses):
            if field == "scale_t2" and set(self._possible("temperature", space)) == {1}:
                return "the temperature is 1"
            mixing = any(AUGMENTATIONS.get(step.name).mixes for step in self.base.augmentation)
            return "" if mixing or field != "hard_mix" else "no augmentation mixes images"
        return f"loss {' and '.join(sorted(losses))} {'does' if len(losses) == 1 else 'do'} not use it"

    def _capped(self, dimension: Dimension) -> str:
        """Why all batch sizes are equivalent; reports a subset of equivalent sizes as a problem."""
        if dimension.field != "batch_size" or self.size is None:
            return ""
        cap = f"the set has {self.size} images, which caps the batch size"
        if min(dimension.choices or (dimension.low,)) >= self.size:
            return cap
        alike = [value for value in dimension.choices if value >= self.size]
        if len(alike) > 1 or (not dimension.choices and dimension.bounds[1] - (dimension.step or 1) >= self.size):
            whole = f"{self.size} and above" if not alike else " and ".join(map(str, alike))
            step, low = dimension.step or 1, dimension.low or 0
            fix = "keep one of them" if alike else f"end at {low + math.ceil((self.size - low) / step) * step}"
            self._problem(("batch_size",), f"Batch sizes {whole} are equivalent: {cap}.", fix)
        return ""

    def _countable(self, space: tuple[Dimension, ...], trials: int | None) -> None:
        points = 1
        for dimension in space:
            if dimension.count is None:
                step = "" if dimension.log else "add a step, "  # a logarithmic range has none
                fix = f"{step}give a list, or use sampler tpe or random"
                self._problem((dimension.field,), "Sampler 'grid' does not support continuous ranges.", fix)
                return
            points *= dimension.count
        if points > MOST_POINTS:
            message = f"Sampler 'grid' lists all points of the space: {points:,}, at most {MOST_POINTS:,}."
            self.document.problem(("space",), message, "give fewer values, or use sampler tpe or random")
        elif isinstance(trials, int) and trials > points:
            message = f"Sampler 'grid' has {points} points, got {trials} trials."
            self.document.problem(("trials",), message, f"write `trials: {points}` or less")


def _in_space(field: str, path: Path) -> Path:
    """The location in the file of a value of a range."""
    return ("space", field, *path)
