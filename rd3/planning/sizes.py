"""What a recipe leaves on the disk, before it runs: bytes of its artifact, from shapes."""

from __future__ import annotations

from collections.abc import Callable

from rd3.datasets import DatasetInfo
from rd3.planning.cost import extent
from rd3.recipe import EvaluationRecipe, Key, Recipe, SetRecipe, StatisticsRecipe, TeacherRecipe

FIXED = 6_000
"""Ledger entry, manifest and result of anything."""
ROW = 22
"""Of a curve, an epoch: measured on curves of 400 epochs."""
SHEET_IMAGES = 100
"""Images on a set's contact sheet, at most, which PNG hardly makes smaller."""
WITH_TILES = 1.3
"""Statistics hold means and variances of channels, and of tiles besides: 1.1 to 1.4 times as much for most networks."""


def artifact_bytes(recipe: Recipe, info: DatasetInfo, network_of: Callable[[Key], str]) -> int:
    """Bytes of a finished recipe: exact to a few per cent for teachers and sets, rough for statistics.

    Without the tracking server's own tables.  ``network_of(key)`` names a teacher's network.
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
