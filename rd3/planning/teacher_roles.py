"""Teacher roles: the name of a teacher in a grid file (``teacher: resnet18``) resolved to its recipe on a dataset.

Does not load torch.  Shipped roles are in ``teacher_roles.yaml``; users add roles by importing weights; the name of any
network is also a role on any dataset.
"""

from __future__ import annotations

from typing import Any

from rd3.datasets import DatasetInfo
from rd3.errors import UnknownName
from rd3.models import NETWORKS, network_info
from rd3.planning.roles import NOT_IMPORTED, UserRole, no_user_role, recipe_named_by_user, shipped_roles
from rd3.protocol import Precision
from rd3.recipe import Data, Normalisation, SourceSplit, TeacherRecipe, TeacherTraining
from rd3.registry import did_you_mean
from rd3.values import Frozen


class Role(Frozen):
    """A row of the table, or a teacher that the user named (``registered``)."""

    network: str
    source: str
    nearest: bool = False
    """Whether the training of this teacher is unpublished for this dataset."""
    normalisation: Normalisation | None = None
    """Normalisation of the inputs; None: the dataset's."""
    training: TeacherTraining | None = None
    """None: its weights are imported."""
    precision: Precision = "auto"
    seed: int = 0
    weights: str | None = None
    """Digest of weights to import, if known in advance."""
    split: SourceSplit = "unknown"
    """What imported weights were trained on."""
    hint: str = ""
    """The command to import it; empty for a teacher that can be trained."""
    registered: TeacherRecipe | None = None


def _rows(info: DatasetInfo) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Shipped rows of a dataset: those of single roles by name, and rows ``<prefix>any`` by their prefix."""
    rows = shipped_roles("teacher_roles.yaml", info)
    families = {name.removesuffix("any"): row for name, row in rows.items() if name.endswith("any")}
    return {name: row for name, row in rows.items() if not name.endswith("any")}, families


def every_role(info: DatasetInfo) -> list[str]:
    """All shipped roles of a dataset: named rows, and for each row ``<prefix>any`` every network after that prefix."""
    named, families = _rows(info)
    return list(dict.fromkeys([*named, *(f"{prefix}{network}" for prefix in families for network in NETWORKS.names())]))


def teacher_role(info: DatasetInfo, role: str, user_role: UserRole = no_user_role) -> Role:
    """The role of this name on a dataset: a teacher that the user named, else the shipped row, else a network.

    Row ``any`` applies to networks by their plain names, ``gvbsm-any`` to ``gvbsm-<network>``.  Raises
    :class:`UnknownName` with a suggestion, and :class:`BadValue` for the name of a backbone.
    """
    recipe = recipe_named_by_user(info, role, user_role, TeacherRecipe)
    if recipe is not None:
        command = f"rd3 teacher import WEIGHTS --dataset {info.name} --network {recipe.network} --role {role}"
        hint = command if recipe.weights is not None else ""
        return Role(network=recipe.network, source="named by the user", hint=hint, registered=recipe)
    named, families = _rows(info)
    if role in named:
        return _role(named[role])
    prefixes = [prefix for prefix in families if role.startswith(prefix)]
    if not prefixes:
        raise UnknownName(
            f"Dataset {info.name} has no teacher {role!r}, as RD3 has none for {info.resolution} pixels.",
            f"import one: rd3 teacher import WEIGHTS --dataset {info.name} --network NETWORK --role {role}",
        )
    prefix = max(prefixes, key=len)
    network = role.removeprefix(prefix)
    try:
        network_info(network)
    except UnknownName:
        known = list(dict.fromkeys([*named, *NETWORKS.names()]))
        raise UnknownName(f"Dataset {info.name} has no teacher {role!r}.", did_you_mean(role, known)) from None
    return _role(families[prefix], network=network)


def _role(row: dict[str, Any], **network: str) -> Role:
    fields = row.get("train") or row["import"]
    return Role(source=row["source"], nearest=row.get("nearest", False), **fields, **network)


def teacher_recipe(role: Role, info: DatasetInfo, fingerprint: str, split: SourceSplit = "train") -> TeacherRecipe:
    """The recipe of a role on a dataset; ``split`` is what it trains on; imported weights have their own.

    A role whose weights have not been imported gets a recipe with a placeholder digest: what needs it is blocked.
    """
    if role.registered is not None:
        return role.registered
    origin: dict[str, Any] = {"weights": role.weights or NOT_IMPORTED}
    if role.training is not None:
        origin = {"training": role.training, "precision": role.precision, "seed": role.seed}
    return TeacherRecipe(
        data=Data(name=info.name, fingerprint=fingerprint, split=split if role.training is not None else role.split),
        classes=info.classes,
        network=role.network,
        resolution=info.resolution,
        normalisation=role.normalisation or info.normalisation,
        **origin,
    )
