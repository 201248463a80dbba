"""Backbone roles: the diffusion model that a method asks for by name (``dit``), resolved to its recipe on a dataset.

Does not load torch.  Shipped roles are in ``backbones.yaml``; users add roles by importing models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.errors import UnknownName
from rd3.planning.roles import NOT_IMPORTED, UserRole, no_user_role, registered, shipped_roles
from rd3.protocol import Precision
from rd3.recipe import BackboneRecipe, BackboneTraining, Data, SourceSplit
from rd3.registry import did_you_mean
from rd3.values import Frozen


class Trained(Frozen):
    """A backbone that can be trained here: the fields of its recipe."""

    config: dict[str, Any]
    training: BackboneTraining
    autoencoder: BackboneTraining | None = None
    precision: Precision = "auto"
    seed: int = 0


class Imported(Frozen):
    """A published model."""

    hint: str
    """Command that imports it."""


class BackboneRole(Frozen):
    """A row of the table, or a backbone that the user named (``registered``)."""

    dataset: str
    name: str
    family: str
    source: str
    train: Trained | None = None
    imported: Imported | None = Field(default=None, alias="import")
    registered: BackboneRecipe | None = None

    @property
    def hint(self) -> str:
        """The command to import it; empty for a backbone that can be trained."""
        if self.registered is not None and self.registered.imported:
            return f"rd3 diffusion import MODEL --dataset {self.dataset} --family {self.family} --role {self.name}"
        return self.imported.hint if self.imported is not None else ""


BackboneOf = Callable[[str], BackboneRecipe]
"""Backbone role to recipe, on the current dataset."""


def backbone_roles(info: DatasetInfo) -> dict[str, dict[str, Any]]:
    """Shipped roles of a dataset by name."""
    return shipped_roles("backbones.yaml", info)


def backbone_role(info: DatasetInfo, role: str, user_role: UserRole = no_user_role) -> BackboneRole:
    """The backbone of this name on a dataset: one that the user named, else the shipped row.

    Raises :class:`UnknownName` with a suggestion, and :class:`BadValue` for the name of a teacher.
    """
    recipe = registered(info, role, user_role, BackboneRecipe)
    if recipe is not None:
        return BackboneRole(
            dataset=info.name, name=role, family=recipe.family, source="named by the user", registered=recipe
        )
    rows = backbone_roles(info)
    if role not in rows:
        raise UnknownName(f"Dataset {info.name} has no diffusion backbone {role!r}.", did_you_mean(role, list(rows)))
    filled = {**rows[role]}
    if "import" in filled:
        filled["import"] = {"hint": filled["import"]["hint"].format(dataset=info.name)}
    return BackboneRole.model_validate({"dataset": info.name, "name": role, **filled})


def backbone_recipe(
    role: BackboneRole, info: DatasetInfo, fingerprint: str, split: SourceSplit = "train"
) -> BackboneRecipe:
    """The recipe of a role on a dataset; ``split`` is what it trains on.

    A role whose model has not been imported gets a recipe with a placeholder digest: what needs it is blocked.
    """
    if role.registered is not None:
        return role.registered
    fields: dict[str, Any] = {"classes": info.classes, "resolution": info.resolution, "family": role.family}
    if role.imported is not None:
        data = Data(name=info.name, fingerprint=fingerprint, split="unknown")
        return BackboneRecipe(data=data, weights=NOT_IMPORTED, **fields)
    assert role.train is not None
    return BackboneRecipe(data=Data(name=info.name, fingerprint=fingerprint, split=split), **dict(role.train), **fields)
