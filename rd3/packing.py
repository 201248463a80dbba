"""Which evaluations are trained together in one process: a pack.  It changes no result and is in no recipe."""

from __future__ import annotations

from collections.abc import Iterable

from rd3.recipe import EvaluationRecipe, Recipe
from rd3.teaching import Views

SIZE = 8
"""Evaluations in a pack at most."""


def companions(first: Recipe, others: Iterable[Recipe], room: int, *, side_by_side: bool) -> list[EvaluationRecipe]:
    """At most ``room`` of ``others`` that may be trained with ``first``, in their order.

    Those whose views are equal share pixels and teachers' answers.  ``side_by_side``: others of one shape may join as
    well, because the device has room for several small networks at once, as a GPU has.
    """
    if not isinstance(first, EvaluationRecipe) or room < 1:
        return []
    views, shape = Views.of(first).key, _shape(first)
    found: list[EvaluationRecipe] = []
    for other in others:
        if len(found) == room:
            break
        if not isinstance(other, EvaluationRecipe) or other.key == first.key or _data(other) != _data(first):
            continue
        if Views.of(other).key == views or (side_by_side and _shape(other) == shape):
            found.append(other)
    return found


def _data(recipe: EvaluationRecipe) -> tuple[object, ...]:
    """What one opened dataset serves."""
    return recipe.data, recipe.classes, recipe.tested_on, recipe.training_only


def _shape(recipe: EvaluationRecipe) -> tuple[object, ...]:
    """What students that run side by side have in common, so that none holds up the others for long."""
    protocol = recipe.protocol
    return recipe.student, recipe.resolution, protocol.batch_size, protocol.precision, protocol.teacher_mode
