"""Which evaluations of a run need the same teacher logits, so that keeping them on disk pays.  Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from rd3.errors import BadValue
from rd3.evaluation.packing import Views
from rd3.recipe import EvaluationRecipe, Key, Recipe

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class LogitsCache(NamedTuple):
    """How an evaluation handles cached logits."""

    budget_bytes: int
    """Disk budget of all cached logits on a machine."""
    wanted: bool
    """Whether evaluations that have not started need these logits too: they are then written, else deleted."""


def disk_budget(text: str) -> int:
    """Bytes of a size such as ``500MB``, ``2.5 GB`` or ``20GiB``; raises :class:`BadValue`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*(?:([KMGT]I?)?B)?", text.strip().upper())
    count = round(float(found[1]) * _UNITS[found[2] or ""]) if found is not None else 0
    if not count:
        raise BadValue(f"{text!r} is not a size above 0.", "write e.g. 500MB or 20GB")
    return count


def asks_teachers(recipe: Recipe) -> bool:
    """Whether teachers label views of this recipe, which takes time in training."""
    if not isinstance(recipe, EvaluationRecipe):
        return False
    return bool(recipe.teachers) and recipe.protocol.labels == "soft" and recipe.protocol.soft_labels != "once"


class Sharing:
    """Groups the evaluations of a run by the teacher logits that they need."""

    def __init__(self, recipes: Iterable[Recipe], budget_bytes: int):
        self._budget_bytes = budget_bytes
        self._views: dict[Key, str] = {}
        self._keys: dict[str, list[Key]] = {}
        for recipe in recipes:
            if isinstance(recipe, EvaluationRecipe) and asks_teachers(recipe):
                views = self._views[recipe.key] = Views.of(recipe).key
                self._keys.setdefault(views, []).append(recipe.key)

    def keep(self, together: Collection[Key], waiting: Callable[[Key], bool]) -> dict[Key, LogitsCache]:
        """How the recipes of one pack handle cached logits; recipes that ask no teacher are left out.

        ``waiting``: whether a recipe has not started and still may.
        """
        found = {}
        for key in self._views.keys() & together:
            sharing = self._keys[self._views[key]]
            wanted = any(other not in together and waiting(other) for other in sharing)
            found[key] = LogitsCache(self._budget_bytes, wanted)
        return found

    def unneeded(self, is_open: Callable[[Key], bool]) -> list[str]:
        """Keys of the views of which no evaluation is open any more."""
        return [views for views, keys in self._keys.items() if not any(map(is_open, keys))]
