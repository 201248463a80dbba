"""Whether a dataset is the one that a recipe was planned for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd3.errors import BadValue, ClassOrderError, DataCorrupt
from rd3.recipe import Recipe

if TYPE_CHECKING:
    from rd3.datasets import Dataset, DatasetInfo


def check_classes(recipe: Recipe, info: DatasetInfo) -> None:
    """Raise :class:`ClassOrderError` unless the dataset has the recipe's class list, in the same order."""
    if recipe.classes != info.classes:
        raise ClassOrderError(
            f"Dataset {info.name} has class list {info.classes[:12]}, the recipe expects {recipe.classes[:12]}.",
            "plan again with this dataset",
        )


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Raise :class:`DataCorrupt` for other images and :class:`ClassOrderError` for another class list."""
    name, expected = recipe.data.name, recipe.data.fingerprint
    check_classes(recipe, dataset.info)
    if (dataset.info.name, dataset.fingerprint) != (name, expected):
        raise DataCorrupt(
            f"Dataset {dataset.info.name} has fingerprint {dataset.fingerprint[:12]}, the recipe expects "
            f"{expected[:12]} of {name}.",
            "restore the same files or plan again with these",
        )


def check_training_images(recipe: Recipe, dataset: Dataset) -> None:
    """Like :func:`check_data`; also raises :class:`BadValue` for another resolution and an unknown split."""
    check_data(recipe, dataset)
    if recipe.resolution != dataset.info.resolution:
        raise BadValue(
            f"Dataset {dataset.info.name} has {dataset.info.resolution} pixels, the recipe expects "
            f"{recipe.resolution}.",
            "plan again with this dataset",
        )
    if recipe.data.split == "unknown":
        raise BadValue(f"The {recipe.kind} cannot be computed on split 'unknown'.", "plan it on 'train' or 'fit'")
