"""Checks of a sweep's search space: valid values, and fields that have an effect."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipelines.grid.located_yaml import Path
from pipelines.grid.structure import SENTENCES, Sentence, Structure, below, check_repeats, check_structure, what
from pipelines.sweep.values import Dimension
from rd3.errors import RD3Error
from rd3.losses import LOSSES
from rd3.protocol import EvalProtocol, UnresolvedValues, mistakes_in, number_type, protocol_names, unchanged_by
from rd3.registry import did_you_mean

if TYPE_CHECKING:
    from pipelines.grid.check import PartCheck

MOST_POINTS = 100_000
"""Maximum number of points of sampler ``grid``, which Optuna keeps in memory."""
_INTERDEPENDENT = (
    "labels", "loss", "soft_labels", "label_top_k", "label_epochs", "label_reuse", "teacher_mode", "epochs",
    "test_resize",
)  # fmt: skip
"""Fields whose values, each valid, may contradict each other (:meth:`rd3.protocol.EvalProtocol.contradictions`) or not
fit the dataset (:meth:`rd3.protocol.EvalProtocol.require_fit`)."""
Resolve = Callable[[dict[str, Any]], EvalProtocol]
"""Values by name to the sweep's protocol with these overrides, but those without effect (:mod:`rd3.protocol`'s
``applicable_values``), such as ``drop_at`` under another schedule than multistep."""


class RangeStructure(Structure):
    """The keys of a range."""

    low: Any
    high: Any
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None


class IntegerRangeStructure(RangeStructure):
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
        self.space: dict[str, Dimension] = {}

    def dimensions(self, space: dict[str, Any], sampler: str | None, trials: int | None) -> tuple[Dimension, ...]:
        """Check every field by itself, then the fields together; returns the valid dimensions."""
        found = [self._dimension(field, value) for field, value in space.items()]
        self.space = {dimension.field: dimension for dimension in found if dimension is not None}
        if len(self.space) == len(found):
            self._check_labels()
            self._check_own_labels()
            for dimension in self.space.values():
                reason = self._without_effect(dimension)
                if reason:
                    message = f"This field has no effect here: {reason}."
                    self._problem((dimension.field,), message, "remove it from the space")
            if sampler == "grid":
                self._check_count(trials)
            if not self.document.problems:
                self._check_contradictions()
        return tuple(self.space.values())

    def _problem(self, path: Path, message: str, fix: str = "") -> None:
        self.document.problem(("space", *path), message, fix)

    def _dimension(self, field: str, value: Any) -> Dimension | None:
        if any(path[:2] == ("space", field) for path in self.document.unreadable):  # and reported
            return None
        before = len(self.document.problems)
        # Fields, settings of losses (`temperature`) and of steps of the augmentation (`flip.probability`).
        known = [name for name in protocol_names() if name != "test_epochs"]
        if field == "test_epochs":
            message = "This field decides only when a trial is validated, not its result."
            self._problem((field,), message, "use `validate_epochs`")
        elif field in UnresolvedValues.model_fields:  # image_steps, which become epochs by the size of the set
            self._problem((field,), "All trials of a sweep train on sets of one size.", "use `epochs`")
        elif field not in known:
            self._problem((field,), f"A protocol has no field {field!r}.", did_you_mean(field, known))
        elif field in self.fixed:
            self._problem((field,), "This field is also set in 'protocol'.", "remove it from one of the two")
        elif field == "loss" and (lost := sorted(self.fixed.keys() - unchanged_by(self.fixed, {"loss": value}).keys())):
            message = f"{lost[0]} of 'protocol' would not be used, as a tuned loss starts from its own settings."
            self._problem((field,), message, f"fix the loss, or remove {lost[0]} there")
        elif isinstance(value, list):
            self._check_choices(field, value)
            value = {"choices": tuple(value)}
        elif isinstance(value, dict):
            self._check_range(field, value)
        else:
            message = f"Expected a range or a list of choices, got {what(value)}."
            self._problem((field,), message, "write {low: ..., high: ...} or [...]")
        return Dimension(field=field, **value) if len(self.document.problems) == before else None

    def _check_value(self, value: Any, field: str, *place: str | int) -> None:
        """Check one value of a field; ``place``: its index among the choices, or its key in the range."""
        path = ("space", field, *place)
        if isinstance(value, list | dict):
            self.document.problem(path, f"Expected a scalar, got {what(value)}.", "vary individual settings")
        elif self.check.is_right(path, value, partial(mistakes_in, field, value)):
            if field == "batch_size" and value < 2:
                message = f"Batch normalisation needs at least two images, got {value}."
                self.document.problem(path, message, "start at 2 or more")
            with self.document.noting(path):
                if field == "loss":
                    LOSSES.get(value)
                elif "." in field:  # the base protocol may not have this step of the augmentation
                    self.resolve({field: value})

    def _check_choices(self, field: str, values: list[Any]) -> None:
        if len(values) < 2:
            content = f"only {values[0]!r}" if values else "nothing"
            self._problem((field,), f"There is no choice: the list contains {content}.", "give at least two values")
        check_repeats(self.document, values, ("space", field))
        for place, value in enumerate(values):
            self._check_value(value, field, place)

    def _check_range(self, field: str, value: dict[str, Any]) -> None:
        kind = number_type(field)
        if kind is None:
            self._problem((field,), f"The field {field!r} is not a number.", "give a list of choices")
            return
        before = len(self.document.problems)
        model = IntegerRangeStructure if kind is int else RangeStructure
        check_structure(self.document, model, value, below("space", field), "A range", RANGE_SENTENCES)
        for end in ("low", "high"):
            if end in value and value[end] is None:  # which is a value of some fields
                self._problem((field, end), "Expected a number, got nothing.", "write a number, or give choices")
            elif end in value:
                self._check_value(value[end], field, end)
        if len(self.document.problems) > before:
            return
        low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
        at_step: Path = (field, "step")
        if low >= high:
            fault = "is empty" if low > high else "contains only one value"
            self._problem((field,), f"The range from {low} to {high} {fault}.", "make 'high' larger than 'low'")
        elif log and step is not None:
            self._problem(at_step, "A logarithmic range has no steps.", "remove 'log' or 'step'")
        elif log and low <= 0:
            self._problem((field, "low"), f"A logarithmic range cannot start at {low}.", "start above 0")
        elif step is not None and (high - low) / step > 2**31:
            self._problem(at_step, f"Steps of {step} from {low} to {high} are too many.", "choose a larger step")
        elif step and not math.isclose((high - low) / step, max(1, round((high - low) / step)), abs_tol=1e-9):
            self._problem(at_step, f"Steps of {step} from {low} do not reach {high}.", "choose another step or end")

    def _check_contradictions(self) -> None:
        """Report the first point that contradicts itself, by the values that do so: its trial could not run.

        The ends of a range stand for all of it: a contradiction between numbers is an inequality, which an end violates
        if any value does.  At ``test_resize`` 0, images are not resized, so that its smallest size counts as an end.
        """
        tuned = [one for one in self.space.values() if one.field in _INTERDEPENDENT]
        tested = [one.choices_or_ends for one in tuned]
        for place, one in enumerate(tuned):
            if one.field == "test_resize" and one.low == 0:
                tested[place] = (*one.choices_or_ends, one.step or 1)
        for values in itertools.product(*tested):
            point = {one.field: value for one, value in zip(tuned, values, strict=True)}
            if self._contradiction(point):
                for field in list(point):
                    rest = {name: value for name, value in point.items() if name != field}
                    point = rest if self._contradiction(rest) else point
                named = " and ".join(f"{name} {value!r}" for name, value in point.items())
                message = f"A trial cannot have {named}. {self._contradiction(point)}"
                self._problem((next(iter(point)),), message, "remove one of these values, or fix another field")
                return

    def _contradiction(self, point: dict[str, Any]) -> str:
        """Why a point is not possible; empty if it is."""
        try:
            self.resolve(point)
        except RD3Error as error:
            return error.message
        return ""

    def _possible(self, field: str) -> tuple[Any, ...]:
        """Values that a field may have in a trial; for a range, its ends."""
        if field in self.space:
            return self.space[field].choices_or_ends
        return (self.base.loss.name if field == "loss" else self.base.value(field),)

    def _check_own_labels(self) -> None:
        """Report ``soft_labels: own``, as generated sets have no labels of their own."""
        if "own" in self._possible("soft_labels"):
            message = "The sets of a sweep have no soft labels of their own."
            path = ("space", "soft_labels") if "soft_labels" in self.space else ("protocol",)
            self.document.problem(path, message, "remove 'own'")

    def _check_labels(self) -> None:
        """Check that losses take the labels of the base protocol: soft and hard labels have losses of their own."""
        labels = self.base.labels
        losses = self.space["loss"].choices if "loss" in self.space else ()
        unsuited = [(place, loss) for place, loss in enumerate(losses) if LOSSES.get(loss).labels != labels]
        if "labels" in self.space and labels == "hard":
            self._problem(("labels",), "The base protocol has hard labels.", "choose one with soft labels")
        elif unsuited:
            place, loss = unsuited[0]
            fix = (
                "add `labels: [soft, hard]` to the space"
                if labels == "soft"
                else "choose a base protocol with soft labels"
            )
            self._problem(
                ("loss", place),
                f"Loss {loss!r} is used with {LOSSES.get(loss).labels} labels only.",
                f"remove it, or {fix}",
            )

    def _without_effect(self, dimension: Dimension) -> str:
        """Why a field has no effect on the result of any trial; empty if it has."""
        field = dimension.field
        if "." in field:
            return self._unused_step(field.rpartition(".")[0])
        if field not in EvalProtocol.model_fields:
            return self._unread_by_losses(field)
        if field == "batch_size":
            return self._capped(dimension)
        soft, schedules = "soft" in self._possible("labels"), set(self._possible("schedule"))
        reasons = {
            "teacher_mode": "" if soft else "hard labels need no teacher",
            "beta2": "" if "adamw" in self._possible("optimizer") else "the optimizer is sgd",
            **dict.fromkeys(
                ("drop_at", "drop_factor"), "" if "multistep" in schedules else "no trial has the schedule multistep"
            ),
            "warmup_start": "" if any(self._possible("warmup_epochs")) else "no trial has a warm-up",
            "zeta": "the schedule is multistep" if schedules == {"multistep"} else "",
            "hybrid": "a single teacher provides the labels",  # sweeps have no `label_teachers`
            "soft_labels": "" if soft else "the labels are hard",
            **dict.fromkeys(("label_dtype", "label_top_k"), self._unstored("once", "stored")),
            "label_epochs": self._unstored("stored"),
            "label_reuse": self._unstored("stored")
            or ("" if any(self._possible("label_epochs")) else "every epoch has labels of its own"),
        }
        return reasons.get(field, "")

    def _unstored(self, *regimes: str) -> str:
        """Why fields of stored labels have no effect: no trial has one of these ``soft_labels``; empty if one has."""
        if set(regimes) & set(self._possible("soft_labels")):
            return ""
        return f"no trial has soft_labels {' or '.join(map(repr, regimes))}"

    def _unused_step(self, step: str) -> str:
        """Why settings of a step of the augmentation have no effect (no trial uses it); empty if they have.

        Steps without effect, such as a patch shuffle with grid 1, are dropped, so a step may be used at some values
        only.
        """
        settings = [one for one in self.space.values() if "." in one.field]
        points = [{}, *({one.field: value} for one in settings for value in one.choices_or_ends)]
        if any(step == each.name for point in points for each in self.resolve(point).augmentation):
            return ""
        return f"no trial uses {step}"

    def _unread_by_losses(self, field: str) -> str:
        """Why a setting of losses has no effect; empty if it has."""
        labels, possible = self._possible("labels"), self._possible("loss")
        losses = set(possible) if "soft" in labels else set()
        if "hard" in labels:  # for which a loss of soft labels is replaced by cross-entropy
            losses |= {loss if LOSSES.get(loss).labels == "hard" else "ce" for loss in possible}
        if any(field in LOSSES.get(loss).Settings.model_fields for loss in losses):
            if field == "scale_t2" and set(self._possible("temperature")) == {1}:
                return "the temperature is 1"
            return "" if self.base.mixes_images or field != "hard_mix" else "no augmentation mixes images"
        return f"loss {' and '.join(sorted(losses))} {'does' if len(losses) == 1 else 'do'} not use it"

    def _capped(self, dimension: Dimension) -> str:
        """Why all batch sizes are equivalent; reports a subset of equivalent sizes as a problem."""
        if self.size is None:
            return ""
        cap = f"the set has {self.size} images, which caps the batch size"
        if min(dimension.choices_or_ends) >= self.size:
            return cap
        alike = [value for value in dimension.choices if value >= self.size]
        step, low = dimension.step or 1, dimension.low or 0
        if len(alike) > 1 or (not dimension.choices and dimension.choices_or_ends[1] - step >= self.size):
            whole = f"{self.size} and above" if not alike else " and ".join(map(str, alike))
            fix = "keep one of them" if alike else f"end at {low + math.ceil((self.size - low) / step) * step}"
            self._problem(("batch_size",), f"Batch sizes {whole} are equivalent: {cap}.", fix)
        return ""

    def _check_count(self, trials: int | None) -> None:
        """Report a continuous range, a grid with too many points, and more trials than points."""
        points = 1
        for dimension in self.space.values():
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
