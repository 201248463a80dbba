"""Recipes: what is made, from what, and the key that follows.

A recipe is a frozen value that holds everything that changes a result and nothing else: no device, no number of
workers, no path.  Its key is ``sha256`` of its canonical JSON, and it names its parents by their keys, so recipes form
a graph that is known before anything runs.  This module loads neither torch nor numpy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from rd3.errors import BadValue
from rd3.protocol import EvalProtocol, Precision, unresolved
from rd3.upgrade import FORMAT, former_key, upgraded
from rd3.values import Frozen, canonical, digest, neutral, without_neutral

Key = str
"""64 hexadecimal digits; people may shorten it to any unambiguous prefix."""

SourceSplit = Literal["train", "fit", "unknown"]
"""``train``: all training images; ``fit``: without the validation part; ``unknown``: imported, nobody said."""


class Normalisation(Frozen):
    """Per-channel constants of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Data(Frozen):
    """A dataset as it was found: its name, the fingerprint of its content, and the part that was drawn from.

    The fingerprint is of all images, or of the training images alone where nothing else is used.
    """

    name: str
    fingerprint: str
    split: SourceSplit = "train"


class Recipe(Frozen):
    """Base of the kinds below."""

    kind: str
    format: Literal[2] = neutral(FORMAT)
    """Of the recipe's JSON; what was written without one is of format 1 (:mod:`rd3.upgrade`)."""
    data: Data
    classes: str
    """Hash of the class list, in order."""
    resolution: int
    """Side of the images, in pixels."""
    version: int
    """Raised when a bug fix changes results."""

    @functools.cached_property
    def key(self) -> Key:
        return digest(without_neutral(self))

    def model_copy(self, **options: Any) -> Self:
        """As pydantic's; the copy works its own key out."""
        copy = super().model_copy(**options)
        copy.__dict__.pop("key", None)
        return copy

    @property
    def training_only(self) -> bool:
        """Made without a look at the test split; ``data.fingerprint`` is then that of the training images alone."""
        return self.data.split == "fit"

    def parents(self) -> tuple[tuple[str, Key], ...]:
        """(kind, key) of everything this is made from."""
        return ()

    def label(self) -> str:
        """A short name for people: what it is, not which."""
        raise NotImplementedError


class TeacherTraining(Frozen):
    """Complete training settings of a teacher: SGD with momentum, and a cosine schedule after linear warm-up."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    batch_size: int = Field(ge=2)
    """Images per optimizer step."""
    lr: float = Field(gt=0)
    """Learning rate at the start of the cosine."""
    momentum: float = Field(ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    weight_decay: float = Field(ge=0)
    """L2 weight decay of all parameters."""
    zeta: float | None = neutral(1.0)
    """The cosine reaches zero after ``zeta * epochs``; None keeps the learning rate constant."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs of linear warm-up to lr."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy (0-1)."""
    crop: Literal["pad", "resized", "none"]
    """``pad``: random crop after padding by an eighth of the side; ``resized``: RandomResizedCrop(0.08, 1)."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""


class TeacherRecipe(Recipe):
    """A trained network that gives labels or statistics: trained here (``training``) or imported (``weights``)."""

    kind: Literal["teacher"] = "teacher"
    network: str
    normalisation: Normalisation
    training: TeacherTraining | None = None
    precision: Precision | None = None
    """Of the training, as in protocols; None for imported weights."""
    seed: int | None = None
    weights: str | None = None
    """sha256 over the decoded tensors of imported weights."""
    version: int = 1

    def model_post_init(self, _context: Any) -> None:
        if (self.training is None) == (self.weights is None):
            raise ValueError("a teacher is either trained (training) or imported (weights)")

    def label(self) -> str:
        return f"teacher {self.network} {self.data.name}"


class Collection(Frozen):
    """How statistics of a network's layers are collected: one pass over the training images."""

    patch: int = Field(ge=1)
    """Side of the tiles whose moments are kept besides those of channels, in pixels of a layer's input."""
    crop: Literal["pad", "resized", "none"]
    """As in :class:`TeacherTraining`."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""
    batch_size: int = Field(ge=1)
    """Images per batch; variances depend on it."""


class StatisticsRecipe(Recipe):
    """Moments of the inputs of a teacher's layers over the training images, of all and of every class."""

    kind: Literal["statistics"] = "statistics"
    teacher: Key
    collection: Collection
    precision: Literal["fp32"] = "fp32"
    seed: int = 0
    """Of crops and flips."""
    version: int = 1

    def parents(self) -> tuple[tuple[str, Key], ...]:
        return (("teacher", self.teacher),)

    def label(self) -> str:
        return f"statistics {self.data.name} of {self.teacher[:8]}"


class SetRecipe(Recipe):
    """A synthetic set: made by a method, or imported (method ``imported``, with the digest of its content)."""

    kind: Literal["set"] = "set"
    method: str
    version: int
    """The method's version."""
    settings: dict[str, Any]
    ipc: int = Field(ge=1)
    teachers: tuple[Key, ...] = ()
    statistics: tuple[Key, ...] = neutral(())
    """One for each of ``teachers``, where the method matches collected statistics."""
    init: Key | None = neutral(None)
    """The set whose images the method starts from; None: from noise, or from none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    set_seed: int | None = None
    content: str | None = None
    """Content digest of an imported set; None for a set that a method makes."""

    def parents(self) -> tuple[tuple[str, Key], ...]:
        return (
            *(("teacher", key) for key in self.teachers),
            *(("statistics", key) for key in self.statistics),
            *([("set", self.init)] if self.init else []),
        )

    def label(self) -> str:
        return f"set {self.method} {self.data.name} ipc{self.ipc}"


class EvaluationRecipe(Recipe):
    """One student trained on one set under one resolved protocol, tested once."""

    kind: Literal["evaluation"] = "evaluation"
    set: Key
    teachers: tuple[Key, ...] = ()
    """Label teachers; empty for hard labels."""
    protocol: EvalProtocol
    student: str
    student_seed: int
    data: Data
    """Where the test images come from; ``split`` is the part that the *set* drew from."""
    tested_on: Literal["test", "validation"] = "test"
    normalisation: Normalisation
    """The student's own constants."""
    version: int = 1

    @classmethod
    def of(
        cls,
        made: SetRecipe,
        *,
        teacher: TeacherRecipe | None,
        protocol: EvalProtocol,
        student: str,
        student_seed: int,
        normalisation: Normalisation,
        **changed: Any,
    ) -> EvaluationRecipe:
        """The evaluation of a set; ``teacher`` gives the labels if the protocol wants soft ones."""
        return cls(
            set=made.key,
            teachers=(teacher.key,) if protocol.labels == "soft" and teacher is not None else (),
            protocol=protocol,
            student=student,
            student_seed=student_seed,
            normalisation=normalisation,
            **{"data": made.data, "classes": made.classes, "resolution": made.resolution, **changed},
        )

    @property
    def training_only(self) -> bool:
        return self.data.split == "fit" and self.tested_on == "validation"

    def parents(self) -> tuple[tuple[str, Key], ...]:
        return (("set", self.set), *(("teacher", key) for key in self.teachers))

    def label(self) -> str:
        return f"evaluation {self.student} {self.data.name} seed{self.student_seed}"


AnyRecipe = TeacherRecipe | StatisticsRecipe | SetRecipe | EvaluationRecipe
Kind = TypeVar("Kind", bound=AnyRecipe)
KINDS = ("teacher", "statistics", "set", "evaluation")
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="kind")])


def from_json(text: str | bytes) -> AnyRecipe:
    """The recipe that a JSON document describes; raises :class:`BadValue` with the first wrong field.

    Its protocol must be a resolved one: the same experiment written in two ways would have two keys.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise _not_a_recipe("the document", str(error)) from None
    recipe = read_recipe(plain)
    open_one = unresolved(recipe.protocol) if isinstance(recipe, EvaluationRecipe) else ""
    if open_one:
        raise _not_a_recipe(f"protocol: {open_one}", "its settings are not all there as the resolved protocol has them")
    return recipe


def read_recipe(plain: Any) -> AnyRecipe:
    """The recipe that plain data describe, upgraded where they are of an older format; raises as :func:`from_json`.

    The keys of an older recipe's parents stay what they were: ``rd3 ledger upgrade`` knows the new ones.
    """
    if isinstance(plain, Mapping):
        plain = upgraded(plain)
    try:
        recipe: AnyRecipe = _ADAPTER.validate_json(canonical(plain))
        return recipe
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _not_a_recipe(place, first["msg"]) from None


def recipe_of_kind(plain: Any, kind: type[Kind]) -> Kind:
    """As :func:`read_recipe`, for a recipe that must be of this kind."""
    recipe = read_recipe(plain)
    if not isinstance(recipe, kind):
        raise _not_a_recipe("kind", f"{recipe.kind!r}, expected {kind.model_fields['kind'].default!r}")
    return recipe


def key_of(plain: Mapping[str, Any]) -> Key:
    """The key of a recipe's plain data, of whichever format it is."""
    return read_recipe(plain).key if plain.get("format", 1) >= FORMAT else former_key(plain)


def _not_a_recipe(place: str, why: str) -> BadValue:
    return BadValue(f"Not a recipe: {place}: {why}.", "write recipes with `rd3 plan GRID --recipes DIR`")


def to_json(recipe: Recipe) -> str:
    """The whole recipe as readable JSON; ``from_json`` gives the same key again."""
    return json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def topological(recipes: Iterable[Recipe], after: Mapping[Key, Key] | None = None) -> list[Recipe]:
    """Parents before children, and a recipe behind the one that ``after`` names for it; else in the given order."""
    after = after or {}
    by_key = {recipe.key: recipe for recipe in recipes}
    done: dict[str, Recipe] = {}

    def visit(recipe: Recipe) -> None:
        if recipe.key in done:
            return
        for before in (*(parent for _kind, parent in recipe.parents()), after.get(recipe.key)):
            if before in by_key:
                visit(by_key[before])
        done[recipe.key] = recipe

    for recipe in by_key.values():
        visit(recipe)
    return list(done.values())
