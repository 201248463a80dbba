"""Size of a recipe's artifact in bytes, computed from shapes before it runs."""

from __future__ import annotations

from collections.abc import Callable

from rd3.datasets import DatasetInfo
from rd3.planning.cost import extent
from rd3.recipe import EvaluationRecipe, Key, Recipe, SetRecipe, StatisticsRecipe, TeacherRecipe

FIXED = 6_000
"""Bytes of the ledger entry, manifest and result of any recipe."""
ROW = 22
"""Bytes per epoch of a curve, measured on curves of 400 epochs."""
SHEET_IMAGES = 100
"""Maximum number of images on a contact sheet, which PNG hardly compresses."""
WITH_TILES = 1.3
"""Factor on the size of channel statistics to include those of tiles: 1.1 to 1.4 for most networks."""


def artifact_bytes(recipe: Recipe, info: DatasetInfo, network_of: Callable[[Key], str]) -> int:
    """Bytes of a finished recipe: exact to a few per cent for teachers and sets, rough for statistics.

    Does not include the tracking server's tables.  ``network_of(key)`` returns the network of a teacher.
    """
    if isinstance(recipe, TeacherRecipe):
        return FIXED + 4 * extent(recipe.network, info.num_classes, recipe.resolution).values
    if isinstance(recipe, SetRecipe):
        count = recipe.ipc * info.num_classes
        return FIXED + (count + min(count, SHEET_IMAGES)) * 3 * recipe.resolution**2
    if isinstance(recipe, StatisticsRecipe):
        channels = extent(network_of(recipe.teacher), info.num_classes, recipe.resolution).channels
        return FIXED + round(WITH_TILES * 8 * (info.num_classes + 1) * channels)
    assert isinstance(recipe, EvaluationRecipe)
    return FIXED + ROW * recipe.protocol.epochs
