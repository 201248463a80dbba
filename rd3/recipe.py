"""Recipes: complete descriptions of teachers, statistics, sets and evaluations, identified by their keys.

A recipe is a frozen value with everything that affects a result and nothing else: no device, no number of workers, no
path.  Its key is ``sha256`` of its canonical JSON, and it refers to its parents by their keys, so recipes form a graph
that is known before anything runs.  This module loads neither torch nor numpy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from rd3.errors import BadValue, RD3Error
from rd3.protocol import EvalProtocol, Precision, unresolved
from rd3.soft_labels import SoftLabelKind
from rd3.upgrade import FORMAT, former_key, upgraded
from rd3.values import Frozen, canonical, digest, first_mistake, neutral, without_neutral

Key = str
"""64 hexadecimal digits; users may shorten it to any unambiguous prefix."""

Holds = Literal["network", "statistics", "images", "curves"]
"""What the files of a recipe contain; ``curves`` are small, the others have files of their own in a study."""

SourceSplit = Literal["train", "fit", "unknown"]
"""``train``: all training images; ``fit``: without the validation part; ``unknown``: imported and not stated."""


class Normalisation(Frozen):
    """Per-channel constants of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Data(Frozen):
    """A dataset: its name, the fingerprint of its content, and the split that is used.

    The fingerprint covers all images, or only the training images if no others are used.
    """

    name: str
    fingerprint: str
    split: SourceSplit = "train"


class Recipe(Frozen):
    """Base of the kinds below: what is common to all, and what a kind itself declares.

    A new kind is a subclass with :func:`register_kind`, and one row in the table of each layer that treats the kinds
    differently (docs/architecture.md lists them).
    """

    plural: ClassVar[str]
    """Several recipes of this kind, as in ``teachers``; also its folder in a study."""
    holds: ClassVar[Holds]
    """What its files contain, which decides when they are exported."""
    counts_as_generation: ClassVar[bool] = True
    """Whether the time that it takes is part of the generation time of the sets that are made from it."""

    named_by: ClassVar[tuple[str, ...]] = ()
    """Fields whose values are part of the names of its files."""
    made_from: ClassVar[Mapping[str, str]] = {}
    """Fields that hold the key of a parent, or several, with the kind of these parents."""

    kind: str
    format: Literal[2] = neutral(FORMAT)
    """Format of the recipe's JSON; 1 if missing (:mod:`rd3.upgrade`)."""
    data: Data
    classes: str
    """Hash of the class list, in order."""
    resolution: int
    """Side of the images, in pixels."""
    version: int = 1
    """Increased when a bug fix changes results."""

    @functools.cached_property
    def key(self) -> Key:
        return digest(without_neutral(self))

    def model_copy(self, **options: Any) -> Self:
        """Like pydantic's, but the copy computes its own key."""
        copy = super().model_copy(**options)
        copy.__dict__.pop("key", None)
        return copy

    @property
    def about_data(self) -> dict[str, Any]:
        """The fields that say on which data it is; those of recipes that are made from it are mostly the same."""
        return {"data": self.data, "classes": self.classes, "resolution": self.resolution}

    @property
    def training_only(self) -> bool:
        """Whether only training images are used; ``data.fingerprint`` is then that of the training images."""
        return self.data.split == "fit"

    def parents(self) -> tuple[tuple[str, Key], ...]:
        """(kind, key) of all direct parents."""
        held = ((kind, getattr(self, field)) for field, kind in self.made_from.items())
        several = ((kind, keys if isinstance(keys, tuple) else (keys,)) for kind, keys in held)
        return tuple((kind, key) for kind, keys in several for key in keys if key is not None)

    def plugins(self) -> tuple[tuple[str, str], ...]:
        """(kind, name) of the methods, losses, augmentations and networks whose code computes it."""
        return ()

    def label(self) -> str:
        """A short readable description, which is not unique."""
        raise NotImplementedError

    @property
    def imported(self) -> bool:
        """Whether its result comes from elsewhere and cannot be computed here."""
        return False

    def unresolved(self) -> str:
        """The first setting that is not fully resolved; empty if there is none."""
        return ""

    @classmethod
    def file_words(cls, plain: Mapping[str, Any]) -> tuple[str, ...]:
        """Words for readable file names, from a recipe's plain data, which may be of an older format."""
        return tuple(str(plain.get(field)) for field in cls.named_by)


Kind = TypeVar("Kind", bound=Recipe)
_kinds: dict[str, type[Recipe]] = {}
KINDS: Mapping[str, type[Recipe]] = MappingProxyType(_kinds)
"""The kinds by name, each after those that it is made from."""


def register_kind(recipe: type[Kind]) -> type[Kind]:
    """Class decorator: a kind of recipe, named by the default of its field ``kind``.

    The kinds that it is made from must be registered before it.  Raises :class:`RD3Error` if the name is taken.
    """
    name = recipe.model_fields["kind"].default
    if name in _kinds:
        raise RD3Error(f"Recipe kind {name!r} is registered twice.", "give one of them another name")
    _kinds[name] = recipe
    return recipe


def kind_order(kind: str) -> int:
    """Position of a kind among all; sorting by it puts parents before children."""
    return list(KINDS).index(kind)


class TeacherTraining(Frozen):
    """Training settings of a teacher: SGD with momentum, and a cosine schedule after linear warm-up."""

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
    zeta: float | None = neutral(1.0, gt=0)
    """The cosine reaches zero after ``zeta * epochs``; None keeps the learning rate constant."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs of linear warm-up to lr."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy (0-1)."""
    crop: Literal["pad", "resized", "none"]
    """``pad``: random crop after padding by an eighth of the side; ``resized``: RandomResizedCrop(0.08, 1)."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""

    @model_validator(mode="after")
    def _cosine_after_warmup(self) -> TeacherTraining:
        if self.zeta is not None and self.zeta * self.epochs <= self.warmup_epochs < self.epochs:
            raise ValueError(f"the cosine of {self.zeta:g} x {self.epochs} epochs ends before the warm-up does")
        return self


class NetworkRecipe(Recipe):
    """Base of networks that are either trained here (``training``) or imported (``weights``)."""

    holds: ClassVar[Holds] = "network"
    counts_as_generation: ClassVar[bool] = False

    training: Frozen | None = None
    precision: Precision | None = None
    """Precision of the training, as in protocols; None for imported weights."""
    seed: int | None = None
    weights: str | None = None
    """sha256 of what is imported: the decoded tensors and, of a backbone, its configuration."""

    def model_post_init(self, _context: Any) -> None:
        if (self.training is None) == (self.weights is None):
            raise ValueError(f"a {self.kind} is either trained (training) or imported (weights)")

    @property
    def imported(self) -> bool:
        return self.training is None


@register_kind
class TeacherRecipe(NetworkRecipe):
    """A trained network for labels or statistics."""

    plural: ClassVar[str] = "teachers"
    named_by: ClassVar[tuple[str, ...]] = ("network",)

    kind: Literal["teacher"] = "teacher"
    network: str
    normalisation: Normalisation
    training: TeacherTraining | None = None

    def plugins(self) -> tuple[tuple[str, str], ...]:
        return () if self.imported else (("network", self.network),)

    def label(self) -> str:
        return f"teacher {self.network} {self.data.name}"


@register_kind
class TrainingDynamicsRecipe(Recipe):
    """What a network's training on the whole dataset says about every training image, recorded epoch by epoch.

    The training is that of a teacher, and like a teacher's its time is not part of the generation time of sets.
    """

    plural: ClassVar[str] = "training_dynamics"
    named_by: ClassVar[tuple[str, ...]] = ("network",)
    holds: ClassVar[Holds] = "statistics"
    counts_as_generation: ClassVar[bool] = False

    kind: Literal["training_dynamics"] = "training_dynamics"
    network: str
    normalisation: Normalisation
    training: TeacherTraining
    precision: Precision
    """Precision of the training, as in protocols."""
    seed: int

    def plugins(self) -> tuple[tuple[str, str], ...]:
        return (("network", self.network),)

    def label(self) -> str:
        return f"training dynamics {self.network} {self.data.name} seed{self.seed}"


class CollectionSettings(Frozen):
    """How the statistics of a network's layers are collected, in one pass over the training images."""

    patch: int = Field(ge=1)
    """Side of the tiles with moments of their own, in pixels of a layer's input."""
    crop: Literal["pad", "resized", "none"]
    """As in :class:`TeacherTraining`."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""
    batch_size: int = Field(ge=1)
    """Images per batch; the variances depend on it."""


@register_kind
class StatisticsRecipe(Recipe):
    """Moments of the inputs of a teacher's layers over all training images and over those of each class."""

    plural: ClassVar[str] = "statistics"
    holds: ClassVar[Holds] = "statistics"
    made_from: ClassVar[Mapping[str, str]] = {"teacher": "teacher"}

    kind: Literal["statistics"] = "statistics"
    teacher: Key
    collection: CollectionSettings
    precision: Literal["fp32"] = "fp32"
    seed: int = 0
    """Seed of the order of images, crops and flips."""

    def label(self) -> str:
        return f"statistics {self.data.name} of {self.teacher[:8]}"


class BackboneTraining(Frozen):
    """Training settings of a diffusion model: AdamW at a constant rate after linear warm-up, and averaged weights."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    batch_size: int = Field(ge=1)
    """Images per optimizer step."""
    lr: float = Field(gt=0)
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up to lr."""
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is what is kept."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of images that are trained without their class, for classifier-free guidance."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""


@register_kind
class BackboneRecipe(NetworkRecipe):
    """A diffusion model, which is trained on the dataset's images if it is trained here."""

    plural: ClassVar[str] = "backbones"
    named_by: ClassVar[tuple[str, ...]] = ("family",)

    kind: Literal["backbone"] = "backbone"
    family: str
    """What the model is conditioned on, and by which network: ``dit`` or ``text-to-image``."""
    config: dict[str, Any] = {}
    """Sizes of the networks of a model that is trained here, as its family names them."""
    training: BackboneTraining | None = None
    autoencoder: BackboneTraining | None = neutral(None)
    """Training of the model's autoencoder, before its own; None if it has none or is imported."""

    def label(self) -> str:
        return f"backbone {self.family} {self.data.name}"


@register_kind
class DerivedRecipe(Recipe):
    """What a method derives from a backbone and the training images before it generates: weights, or prototypes."""

    plural: ClassVar[str] = "derived"
    named_by: ClassVar[tuple[str, ...]] = ("step",)
    holds: ClassVar[Holds] = "statistics"
    made_from: ClassVar[Mapping[str, str]] = {"backbone": "backbone"}

    kind: Literal["derived"] = "derived"
    step: str
    """Name of the derivation."""
    version: int
    """Version of the derivation."""
    settings: dict[str, Any]
    backbone: Key
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def plugins(self) -> tuple[tuple[str, str], ...]:
        return (("derivation", self.step),)

    def label(self) -> str:
        return f"{self.step} {self.data.name} of {self.backbone[:8]}"


@register_kind
class SetRecipe(Recipe):
    """A synthetic set: generated by a method, or imported (method ``imported``, with a content digest)."""

    plural: ClassVar[str] = "sets"
    holds: ClassVar[Holds] = "images"
    made_from: ClassVar[Mapping[str, str]] = {
        "teachers": "teacher",
        "statistics": "statistics",
        "dynamics": "training_dynamics",
        "backbones": "backbone",
        "derived": "derived",
        "init": "set",
    }

    kind: Literal["set"] = "set"
    method: str
    version: int
    """Version of the method."""
    settings: dict[str, Any]
    """Settings of the method; of an imported set with soft labels, their ``soft_label_kind``."""
    ipc: int = Field(ge=1)
    teachers: tuple[Key, ...] = ()
    statistics: tuple[Key, ...] = neutral(())
    """Keys of the layer statistics of each of ``teachers``, if the method uses them."""
    dynamics: tuple[Key, ...] = neutral(())
    """Keys of the training dynamics by which the method scores images."""
    backbones: tuple[Key, ...] = neutral(())
    """Keys of the diffusion models that the method samples from."""
    derived: tuple[Key, ...] = neutral(())
    """Keys of what was derived from each of ``backbones``, if the method derives something."""
    init: Key | None = neutral(None)
    """Key of the set with the initial images; None for methods that start from noise or need no initial images."""
    precision: Literal["fp32", "bf16"] = "fp32"
    set_seed: int | None = None
    """None for an imported set."""
    content: str | None = None
    """Content digest of an imported set; None for a generated set."""

    def plugins(self) -> tuple[tuple[str, str], ...]:
        return () if self.imported else (("method", self.method),)

    def label(self) -> str:
        return f"set {self.method} {self.data.name} ipc{self.ipc}"

    @property
    def imported(self) -> bool:
        return self.content is not None

    @property
    def soft_label_kind(self) -> SoftLabelKind | None:
        """What the soft labels are that the set comes with; None if it has none, as every set that RD3 generates."""
        return self.settings.get("soft_label_kind") if self.imported else None

    @classmethod
    def file_words(cls, plain: Mapping[str, Any]) -> tuple[str, ...]:
        return str(plain.get("method")), f"ipc{plain.get('ipc')}"


class _Tested(Recipe):
    """A recipe whose student is tested."""

    tested_on: Literal["test", "validation"] = "test"

    @property
    def training_only(self) -> bool:
        return super().training_only and self.tested_on == "validation"


@register_kind
class EvaluationRecipe(_Tested):
    """One student trained on one set under one resolved protocol, tested once."""

    plural: ClassVar[str] = "evaluations"
    holds: ClassVar[Holds] = "curves"
    made_from: ClassVar[Mapping[str, str]] = {"set": "set", "teachers": "teacher"}

    kind: Literal["evaluation"] = "evaluation"
    set: Key
    teachers: tuple[Key, ...] = ()
    """Keys of the teachers that give soft labels; empty for hard labels and for a set's own."""
    protocol: EvalProtocol
    student: str
    student_seed: int
    data: Data
    """Dataset of the test images; ``split`` is the split that the *set* was generated from."""
    normalisation: Normalisation
    """Normalisation of the student's inputs."""

    @classmethod
    def of(
        cls,
        synthetic_set: SetRecipe,
        *,
        teachers: Iterable[TeacherRecipe],
        protocol: EvalProtocol,
        student: str,
        student_seed: int,
        normalisation: Normalisation,
        **changed: Any,
    ) -> EvaluationRecipe:
        """The evaluation of a set; ``teachers`` give the labels if the protocol's labels are those of teachers.

        Raises :class:`BadValue` for a protocol with a set's own soft labels and a set without.
        """
        protocol.require_labels_of(synthetic_set.soft_label_kind)
        return cls(
            set=synthetic_set.key,
            teachers=tuple(teacher.key for teacher in teachers) if protocol.taught else (),
            protocol=protocol,
            student=student,
            student_seed=student_seed,
            normalisation=normalisation,
            **synthetic_set.about_data | changed,
        )

    def plugins(self) -> tuple[tuple[str, str], ...]:
        steps = (("augmentation", step.name) for step in self.protocol.augmentation)
        return ("loss", self.protocol.loss.name), *steps, ("network", self.student)

    def label(self) -> str:
        return f"evaluation {self.student} {self.data.name} seed{self.student_seed}"

    def unresolved(self) -> str:
        found = unresolved(self.protocol)
        return f"protocol: {found}" if found else ""


@register_kind
class RobustnessRecipe(_Tested):
    """What is measured on the test images of an evaluation with the weights of its student."""

    plural: ClassVar[str] = "robustness"
    holds: ClassVar[Holds] = "curves"
    made_from: ClassVar[Mapping[str, str]] = {"evaluation": "evaluation"}

    kind: Literal["robustness"] = "robustness"
    evaluation: Key
    corruptions: tuple[str, ...] = ()
    """Names in :mod:`rd3.robustness.corruptions`, each at five severities; calibration is always measured."""
    seed: int = 0
    """Seed of the corruptions' noise."""

    @classmethod
    def of(cls, evaluation: EvaluationRecipe, corruptions: Iterable[str]) -> RobustnessRecipe:
        return cls(
            evaluation=evaluation.key,
            tested_on=evaluation.tested_on,
            corruptions=tuple(corruptions),
            **evaluation.about_data,
        )

    def label(self) -> str:
        return f"robustness {self.data.name} of {self.evaluation[:8]}"


def from_json(text: str | bytes) -> Recipe:
    """Parse a recipe from JSON; raises :class:`BadValue` with the first invalid field.

    The protocol must be fully resolved, as otherwise the same experiment could have two keys.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_a_recipe(f"the document: {error}") from None
    recipe = read_recipe(plain)
    if recipe.unresolved():
        raise _not_a_recipe(f"{recipe.unresolved()}: settings differ from the resolved protocol")
    return recipe


def read_recipe(plain: Any) -> Recipe:
    """Parse a recipe from plain data, upgrading older formats; raises like :func:`from_json`.

    The parents of an older recipe keep their old keys, which ``rd3 ledger upgrade`` replaces.
    """
    if not isinstance(plain, Mapping):
        raise _not_a_recipe("the document: it is not an object")
    kind = KINDS.get(str(plain.get("kind")))
    if kind is None:
        raise _not_a_recipe(f"kind: {plain.get('kind')!r}, expected one of {', '.join(KINDS)}")
    if not isinstance(plain.get("format", 1), int):
        raise _not_a_recipe(f"format: {plain['format']!r}, expected a number")
    try:
        return kind.model_validate_json(canonical(upgraded(plain)))
    except ValidationError as error:
        raise _not_a_recipe(first_mistake(error, str(plain["kind"]))) from None
    except (ValueError, TypeError) as error:  # NaN, or a mapping in place of a key
        raise _not_a_recipe(f"the document: {error}") from None


def recipe_of_kind(plain: Any, kind: type[Kind]) -> Kind:
    """Like :func:`read_recipe`, but raises for a recipe of another kind."""
    recipe = read_recipe(plain)
    if not isinstance(recipe, kind):
        raise _not_a_recipe(f"kind: {recipe.kind!r}, expected {kind.model_fields['kind'].default!r}")
    return recipe


def key_of(plain: Mapping[str, Any]) -> Key:
    """The key of a recipe's plain data, in any format."""
    return read_recipe(plain).key if plain.get("format", 1) >= FORMAT else former_key(plain)


def _not_a_recipe(why: str) -> BadValue:
    return BadValue(f"Not a recipe: {why}.", "write recipes with `rd3 plan GRID --recipes DIR`")


def to_json(recipe: Recipe) -> str:
    """The complete recipe as indented JSON; ``from_json`` restores it with the same key."""
    return json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def topological(recipes: Iterable[Recipe], after: Mapping[Key, Key] | None = None) -> list[Recipe]:
    """Sort parents before children, and recipes after the one that ``after`` maps them to; otherwise a stable order."""
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
