"""Backbone roles: the diffusion model that a method asks for by name (``dit``), resolved to its recipe on a dataset.

Does not load torch.  Shipped roles are in ``backbones.yaml``; users add roles by importing models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rd3.datasets import DatasetInfo
from rd3.errors import UnknownName
from rd3.planning.roles import NOT_IMPORTED, UserRole, no_user_role, recipe_named_by_user, shipped_roles
from rd3.recipe import BackboneRecipe, Data, SourceSplit
from rd3.registry import did_you_mean
from rd3.values import Frozen


class BackboneRole(Frozen):
    """A row of the table, or a backbone that the user named (``registered``)."""

    family: str
    train: dict[str, Any] = {}
    """Fields of the recipe of a backbone that is trained here; empty for one that is imported."""
    hint: str = ""
    """The command to import it; empty for a backbone that can be trained."""
    registered: BackboneRecipe | None = None


BackboneOf = Callable[[str], BackboneRecipe]
"""Backbone role to recipe, on the current dataset."""


def backbone_role(info: DatasetInfo, role: str, user_role: UserRole = no_user_role) -> BackboneRole:
    """The backbone of this name on a dataset: one that the user named, else the shipped row.

    Raises :class:`UnknownName` with a suggestion, and :class:`BadValue` for the name of a teacher.
    """
    recipe = recipe_named_by_user(info, role, user_role, BackboneRecipe)
    if recipe is not None:
        command = f"rd3 diffusion import MODEL --dataset {info.name} --family {recipe.family} --role {role}"
        return BackboneRole(family=recipe.family, hint=command if recipe.imported else "", registered=recipe)
    rows = shipped_roles("backbones.yaml", info)
    if role not in rows:
        raise UnknownName(f"Dataset {info.name} has no diffusion backbone {role!r}.", did_you_mean(role, list(rows)))
    row = rows[role]
    hint = row["import"]["hint"].format(dataset=info.name) if "import" in row else ""
    return BackboneRole(family=row["family"], train=row.get("train", {}), hint=hint)


def backbone_recipe(
    role: BackboneRole, info: DatasetInfo, fingerprint: str, split: SourceSplit = "train"
) -> BackboneRecipe:
    """The recipe of a role on a dataset; ``split`` is what it trains on.

    A role whose model has not been imported gets a recipe with a placeholder digest: what needs it is blocked.
    """
    if role.registered is not None:
        return role.registered
    return BackboneRecipe(
        data=Data(name=info.name, fingerprint=fingerprint, split=split if role.train else "unknown"),
        classes=info.classes,
        resolution=info.resolution,
        family=role.family,
        **({"precision": "auto", "seed": 0} | role.train if role.train else {"weights": NOT_IMPORTED}),
    )
