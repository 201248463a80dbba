"""What roles of teachers and of diffusion backbones have in common; does not load torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import yaml

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue
from rd3.recipe import Kind, read_recipe

NOT_IMPORTED = "not imported"
"""Placeholder digest of weights that have not been imported yet; no real digest equals it."""

UserRole = Callable[[str, str], Mapping[str, Any] | None]
"""Maps (dataset, role) to what the user gave this name, as a plain recipe, if any."""


def no_user_role(_dataset: str, _role: str) -> None:
    """A :data:`UserRole` without any roles."""


@functools.cache
def _table(file: str) -> dict[str, dict[str, dict[str, Any]]]:
    text = files("rd3.planning").joinpath(file).read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return table


def shipped_roles(file: str, info: DatasetInfo) -> dict[str, dict[str, Any]]:
    """The rows of a table for a dataset by name; its own rows override those of its resolution."""
    return {**_table(file).get(f"{info.resolution}px", {}), **_table(file).get(info.name, {})}


def recipe_named_by_user(info: DatasetInfo, role: str, user_role: UserRole, kind: type[Kind]) -> Kind | None:
    """The recipe that the user gave this name, if any; raises :class:`BadValue` for one of another kind."""
    found = user_role(info.name, role)
    recipe = None if found is None else read_recipe(found)
    if recipe is None or isinstance(recipe, kind):
        return recipe
    raise BadValue(f"Role {role} of {info.name} is a {recipe.kind}, not a {kind.model_fields['kind'].default}.")
