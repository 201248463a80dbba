"""Packs: evaluations trained together in one process.  Packing changes no result and is not part of recipes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Literal

from rd3.component import Component
from rd3.protocol import Precision
from rd3.recipe import EvaluationRecipe, Key, Recipe
from rd3.values import Frozen, digest

PACK_SIZE = 8
"""Maximum number of evaluations in a pack."""


class Views(Frozen):
    """All fields that determine the augmented pixels of an evaluation and the teachers' logits on them.

    That is, logits before an evaluation rounds them as its stored labels (``label_dtype``, ``label_top_k``).
    Evaluations with equal values may share both, regardless of their students, losses and schedules.
    """

    set: Key
    teachers: tuple[Key, ...]
    augmentation: tuple[Component, ...]
    epochs: int
    batch_size: int
    teacher_mode: Literal["eval", "batch"]
    once: bool
    """Whether images are labelled instead of views: by teachers, or with the set's own labels."""
    label_epochs: int | None
    label_reuse: Literal["batches", "epochs"]
    precision: Precision
    student_seed: int

    @property
    def key(self) -> str:
        """A digest of the values."""
        return digest(self.model_dump(mode="json"))

    @classmethod
    def of(cls, recipe: EvaluationRecipe) -> Views:
        shared = {name: value for name, value in recipe.protocol if name in cls.model_fields}
        once, seed = recipe.protocol.soft_labels in ("once", "own"), recipe.student_seed
        return cls(set=recipe.set, teachers=recipe.teachers, once=once, student_seed=seed, **shared)


class Packing:
    """Finds recipes that may be trained together; what determines this is computed once per recipe.

    Evaluations with equal views share pixels and teacher logits.  ``side_by_side``: evaluations of the same shape may
    also be combined, because the device (a GPU) can train several small networks at once.
    """

    def __init__(self, recipes: Iterable[Recipe], *, side_by_side: bool):
        self._groups: dict[Hashable, list[EvaluationRecipe]] = {}
        self._groups_of: dict[Key, list[Hashable]] = {}
        for recipe in recipes:
            if isinstance(recipe, EvaluationRecipe):
                shared = [("views", Views.of(recipe).key), *([_shape(recipe)] if side_by_side else [])]
                self._groups_of[recipe.key] = [(_data(recipe), each) for each in shared]
                for group in self._groups_of[recipe.key]:
                    self._groups.setdefault(group, []).append(recipe)

    def companions(self, first: Recipe, free: Callable[[Key], bool], room: int) -> list[EvaluationRecipe]:
        """At most ``room`` recipes that may be trained with ``first`` and are ``free``.

        Recipes that share its views come first; otherwise in the order of the recipes.
        """
        found: dict[Key, EvaluationRecipe] = {}
        sharing = (other for group in self._groups_of.get(first.key, ()) for other in self._groups[group])
        for other in sharing:
            if len(found) >= room:
                break
            if other.key != first.key and free(other.key):
                found[other.key] = other
        return list(found.values())


def _data(recipe: EvaluationRecipe) -> Hashable:
    """Evaluations with equal values use the same opened dataset; ``training_only``: without its test images."""
    return recipe.data, recipe.classes, recipe.tested_on, recipe.training_only


def _shape(recipe: EvaluationRecipe) -> Hashable:
    """Students with equal values may run side by side, as their steps take similar time."""
    protocol = recipe.protocol
    return recipe.student, recipe.resolution, protocol.batch_size, protocol.precision, protocol.teacher_mode
