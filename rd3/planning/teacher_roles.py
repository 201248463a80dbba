"""Teacher roles: the name of a teacher in a grid file (``teacher: resnet18``) resolved to its recipe on a dataset.

Does not load torch.  Shipped roles are in ``teacher_roles.yaml``; users add roles by importing weights; the name of any
network is also a role on any dataset.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.errors import UnknownName
from rd3.models import network_info, network_names
from rd3.planning.roles import NOT_IMPORTED, UserRole, no_user_role, registered, shipped_roles
from rd3.protocol import Precision
from rd3.recipe import Data, Normalisation, SourceSplit, TeacherRecipe, TeacherTraining
from rd3.registry import did_you_mean
from rd3.values import Frozen


class Trained(Frozen):
    """A teacher that can be trained."""

    network: str
    normalisation: Normalisation | None = None
    """Normalisation of the inputs; None: the dataset's."""
    precision: Precision = "auto"
    seed: int = 0
    training: TeacherTraining


class Imported(Frozen):
    """A teacher whose weights come from elsewhere."""

    network: str
    hint: str
    """Command that imports the weights."""
    normalisation: Normalisation | None = None
    """Normalisation it was trained with; None: the dataset's."""
    weights: str | None = None
    """Digest of the weights, if known in advance."""
    split: SourceSplit = "unknown"


class Role(Frozen):
    """A row of the table, or a teacher that the user named (``registered``)."""

    dataset: str
    name: str
    source: str
    nearest: bool = False
    """Whether the training of this teacher is unpublished for this dataset."""
    train: Trained | None = None
    imported: Imported | None = Field(default=None, alias="import")
    registered: TeacherRecipe | None = None

    @property
    def network(self) -> str:
        """Name of its network."""
        found = self.train or self.imported or self.registered
        assert found is not None
        return found.network

    @property
    def hint(self) -> str:
        """The command to import it; empty for a teacher that can be trained."""
        if self.registered is not None and self.registered.weights is not None:
            return f"rd3 teacher import WEIGHTS --dataset {self.dataset} --network {self.network} --role {self.name}"
        return self.imported.hint if self.imported is not None else ""


def _rows(info: DatasetInfo) -> dict[str, dict[str, Any]]:
    return shipped_roles("teacher_roles.yaml", info)


def every_role(info: DatasetInfo) -> list[str]:
    """All shipped roles of a dataset: named rows, and for each row ``<prefix>any`` every network after that prefix."""
    rows = _rows(info)
    prefixes = [name[:-3] for name in rows if name.endswith("any")]
    named = [name for name in rows if not name.endswith("any")]
    return list(dict.fromkeys([*named, *(f"{prefix}{network}" for prefix in prefixes for network in network_names())]))


def teacher_role(info: DatasetInfo, role: str, user_role: UserRole = no_user_role) -> Role:
    """The role of this name on a dataset: a teacher that the user named, else the shipped row, else a network.

    Row ``any`` applies to networks by their plain names, ``gvbsm-any`` to ``gvbsm-<network>``.  Raises
    :class:`UnknownName` with a suggestion, and :class:`BadValue` for the name of a backbone.
    """
    recipe = registered(info, role, user_role, TeacherRecipe)
    if recipe is not None:
        return Role(dataset=info.name, name=role, source="named by the user", registered=recipe)
    rows = _rows(info)
    if role in rows and not role.endswith("any"):
        return Role.model_validate({"dataset": info.name, "name": role, **rows[role]})
    families = [name for name in rows if name.endswith("any") and role.startswith(name[:-3])]
    if not families:
        raise UnknownName(
            f"Dataset {info.name} has no teacher {role!r}, as RD3 has none for {info.resolution} pixels.",
            f"import one: rd3 teacher import WEIGHTS --dataset {info.name} --network NETWORK --role {role}",
        )
    family = max(families, key=len)
    network = role.removeprefix(family[:-3])
    try:
        network_info(network)
    except UnknownName:
        known = list(dict.fromkeys([*(name for name in rows if not name.endswith("any")), *network_names()]))
        raise UnknownName(f"Dataset {info.name} has no teacher {role!r}.", did_you_mean(role, known)) from None
    row = rows[family]
    return Role.model_validate(
        {"dataset": info.name, "name": role, **row, "train": {"network": network, **row["train"]}}
    )


def teacher_recipe(role: Role, info: DatasetInfo, fingerprint: str, split: SourceSplit = "train") -> TeacherRecipe:
    """The recipe of a role on a dataset; ``split`` is what it trains on; imported weights have their own.

    A role whose weights have not been imported gets a recipe with a placeholder digest: what needs it is blocked.
    """
    if role.registered is not None:
        return role.registered
    if role.imported is not None:
        fields = {
            "data": Data(name=info.name, fingerprint=fingerprint, split=role.imported.split),
            "normalisation": role.imported.normalisation or info.normalisation,
            "weights": role.imported.weights or NOT_IMPORTED,
        }
    else:
        assert role.train is not None
        fields = {
            "data": Data(name=info.name, fingerprint=fingerprint, split=split),
            "normalisation": role.train.normalisation or info.normalisation,
            "training": role.train.training,
            "precision": role.train.precision,
            "seed": role.train.seed,
        }
    return TeacherRecipe(classes=info.classes, network=role.network, resolution=info.resolution, **fields)
