"""Folders of files with a manifest, which is written last: a folder that has one is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from rd3.errors import ClassOrderError, DataCorrupt, DataMissing
from rd3.recipe import Key, Recipe, read_recipe
from rd3.store import check_files, write_atomically
from rd3.values import Frozen, first_mistake


class ArtifactManifest(Frozen):
    """What the manifests of teachers, statistics and backbones have in common."""

    noun: ClassVar[str]
    """What the folder holds."""
    file: ClassVar[str] = "manifest.json"
    fix: ClassVar[str]
    """How to get the files again."""

    key: str
    """Key of the recipe, in the format in which it was written."""
    recipe: dict[str, Any]
    dataset: str
    """Name of the dataset."""
    classes: str
    """Hash of the class list, in order."""

    @classmethod
    def of(cls, recipe: Recipe, **fields: Any) -> Self:
        """The manifest of a recipe's files; ``fields`` are those of the subclass."""
        plain = recipe.model_dump(mode="json")
        return cls(key=recipe.key, recipe=plain, dataset=recipe.data.name, classes=recipe.classes, **fields)

    def write(self, folder: Path, exclude: set[str] | None = None) -> None:
        """Write the manifest, after all other files."""
        plain = self.model_dump(mode="json", exclude=exclude)
        write_atomically(folder / self.file, json.dumps(plain, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in a folder; raises :class:`DataMissing` or :class:`DataCorrupt`."""
        path = Path(folder) / cls.file
        if not path.is_file():
            raise DataMissing(f"{folder} holds no {cls.noun}: {cls.file} is missing.", cls.fix)
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataCorrupt(f"{path} is not a {cls.noun} manifest: {first_mistake(error)}.", cls.fix) from None

    def check(self, folder: Path, recipe: Recipe, formerly: Key | None = None) -> None:
        """Raise :class:`ClassOrderError` for another class list and :class:`DataCorrupt` for another recipe.

        ``formerly`` is the recipe's former key, if the files were written under one (:mod:`rd3.upgrade`).
        """
        if self.classes != recipe.classes:
            raise ClassOrderError(
                f"The {self.noun} in {folder}: class list {self.classes[:12]}, the recipe expects "
                f"{recipe.classes[:12]}.",
                f"use the {self.noun} of this dataset, with its classes in the same order",
            )
        if self.key not in (recipe.key, formerly):
            found, expected = _described(read_recipe(self.recipe), self.key), _described(recipe, recipe.key)
            raise DataCorrupt(f"{folder} holds {found}, expected {expected}.", self.fix)

    def check_file(self, folder: Path, name: str, sha256: str) -> None:
        """Raise :class:`DataMissing` or :class:`DataCorrupt` unless the file has this hash."""
        check_files(folder, {name: sha256}, f"The {self.noun} in {folder}", self.fix)


def _described(recipe: Recipe, key: Key) -> str:
    return f"{recipe.label()} at {recipe.resolution} pixels with key {key[:12]}"
