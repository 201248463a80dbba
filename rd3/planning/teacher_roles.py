"""Teacher roles: what a grid's ``teacher: resnet18`` means on a dataset, as a recipe; costs no torch import.

Shipped roles are data (``teacher_roles.yaml``); a user names others by importing weights; the name of any network is a
role on any dataset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import yaml
from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.errors import UnknownName
from rd3.models import network_info, network_names
from rd3.protocol import Precision
from rd3.recipe import Data, Normalisation, SourceSplit, TeacherRecipe, TeacherTraining, read_recipe
from rd3.registry import did_you_mean
from rd3.values import Frozen

NOT_IMPORTED = "not imported"
"""Stands for the digest of weights that nobody has imported yet: a key that nothing can ever have."""


class Trained(Frozen):
    """A teacher that can be trained."""

    network: str
    normalisation: Normalisation | None = None
    """None: the dataset's."""
    precision: Precision = "auto"
    seed: int = 0
    training: TeacherTraining


class Imported(Frozen):
    """A teacher whose weights come from elsewhere."""

    network: str
    hint: str
    """The command that imports it."""
    normalisation: Normalisation | None = None
    """What it was trained with; None: the dataset's."""
    weights: str | None = None
    """Digest, where it is known beforehand."""
    split: SourceSplit = "unknown"


class Role(Frozen):
    """One row, or a teacher that a user named (``registered``)."""

    dataset: str
    name: str
    source: str
    nearest: bool = False
    """True where nobody published this teacher's training for this dataset."""
    train: Trained | None = None
    imported: Imported | None = Field(default=None, alias="import")
    registered: TeacherRecipe | None = None

    @property
    def network(self) -> str:
        """Its architecture."""
        found = self.train or self.imported or self.registered
        assert found is not None
        return found.network

    @property
    def hint(self) -> str:
        """How to import it; empty for a teacher that can be trained."""
        if self.registered is not None and self.registered.weights is not None:
            return f"rd3 teacher import WEIGHTS --dataset {self.dataset} --network {self.network} --role {self.name}"
        return self.imported.hint if self.imported is not None else ""


@functools.cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    text = files("rd3.planning").joinpath("teacher_roles.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return table


UserRole = Callable[[str, str], Mapping[str, Any] | None]
"""(dataset, role) to the teacher that a user gave this name, as a plain recipe, if any."""


def _rows(info: DatasetInfo) -> dict[str, dict[str, Any]]:
    """The dataset's rows, after those of its resolution."""
    return {**_table().get(f"{info.resolution}px", {}), **_table().get(info.name, {})}


def every_role(info: DatasetInfo) -> list[str]:
    """All shipped roles of a dataset: named rows, and every network in every family of them."""
    rows = _rows(info)
    families = [name[:-3] for name in rows if name.endswith("any")]
    named = [name for name in rows if not name.endswith("any")]
    return list(dict.fromkeys([*named, *(f"{family}{network}" for family in families for network in network_names())]))


def teacher_role(info: DatasetInfo, role: str, user_role: UserRole = lambda dataset, role: None) -> Role:
    """What ``role`` means on a dataset: a teacher the user named, else the shipped row, else a network by its name.

    A row ``any`` is for networks by their plain names, ``gvbsm-any`` for ``gvbsm-<network>``.  Raises
    :class:`UnknownName` with a did-you-mean.
    """
    found = user_role(info.name, role)
    if found is not None:
        recipe = read_recipe(found)
        return Role(dataset=info.name, name=role, source="named by the user", registered=recipe)
    rows = _rows(info)
    if role in rows and not role.endswith("any"):
        return Role.model_validate({"dataset": info.name, "name": role, **rows[role]})
    family = max((name for name in rows if name.endswith("any") and role.startswith(name[:-3])), key=len)
    network = role.removeprefix(family[:-3])
    try:
        network_info(network)
    except UnknownName:
        known = [*(name for name in rows if not name.endswith("any")), *network_names()]
        raise UnknownName(f"Dataset {info.name} has no teacher {role!r}.", did_you_mean(role, known)) from None
    row = rows[family]
    return Role.model_validate(
        {"dataset": info.name, "name": role, **row, "train": {"network": network, **row["train"]}}
    )


def teacher_recipe(role: Role, info: DatasetInfo, fingerprint: str, split: SourceSplit = "train") -> TeacherRecipe:
    """The recipe of a role on a dataset as it was found; ``split`` is what a teacher trained here learns from.

    A role whose weights nobody has imported gets a recipe that nothing can satisfy: whatever needs it is blocked.
    """
    if role.registered is not None:
        return role.registered
    if role.imported is not None:
        made = {
            "data": Data(name=info.name, fingerprint=fingerprint, split=role.imported.split),
            "normalisation": role.imported.normalisation or info.normalisation,
            "weights": role.imported.weights or NOT_IMPORTED,
        }
    else:
        assert role.train is not None
        training = role.train.training
        made = {
            "data": Data(name=info.name, fingerprint=fingerprint, split=split),
            "normalisation": role.train.normalisation or info.normalisation,
            "training": training,
            "precision": role.train.precision,
            "seed": role.train.seed,
        }
    return TeacherRecipe(classes=info.classes, network=role.network, resolution=info.resolution, **made)
