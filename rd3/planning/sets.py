"""Plan the recipes of a set and of its parents from a method, a dataset and an IPC; does not load torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rd3.datasets import DatasetInfo
from rd3.diffusion.derivation import DERIVATIONS, Derive
from rd3.errors import BadValue, ClassOrderError, UnknownName, Unsupported
from rd3.methods import METHODS, NOISE, Recording, Settings, resolve_settings
from rd3.planning.backbones import BackboneOf
from rd3.recipe import (
    BackboneRecipe,
    Data,
    DerivedRecipe,
    Recipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
    TrainingDynamicsRecipe,
)
from rd3.registry import did_you_mean

TeacherOf = Callable[[str], TeacherRecipe]
"""Teacher role to recipe, on the current dataset."""
SettingsOf = Callable[[str, DatasetInfo, int, dict[str, Any]], Settings]
"""Method, dataset, IPC and values to resolved settings, as :func:`rd3.methods.resolve_settings`."""
KnownSet = Callable[[str], SetRecipe | None]
"""Maps a key, or its first digits, to the recipe of that set in the ledger; None if there is none."""


def no_backbone(role: str) -> BackboneRecipe:
    """A ``backbone_of`` without any backbones."""
    raise Unsupported(f"no diffusion backbone {role} is at hand")


@dataclass(frozen=True)
class PlannedSet:
    """A method's set on a dataset, fully resolved except for the set seed."""

    method: str
    settings: Settings
    info: DatasetInfo
    data: Data
    ipc: int
    teachers: tuple[TeacherRecipe, ...] = ()
    statistics: tuple[StatisticsRecipe, ...] = ()
    dynamics: tuple[TrainingDynamicsRecipe, ...] = ()
    backbones: tuple[BackboneRecipe, ...] = ()
    derived: tuple[DerivedRecipe, ...] = ()
    init: PlannedSet | SetRecipe | None = None

    def recipes(self, set_seed: int) -> list[Recipe]:
        """Recipes of the set's parents, in order, and the set's own recipe last.

        A method without a set seed gets the same recipe for all of them, with set seed 0.
        """
        several = {name: getattr(self, name) for name in SetRecipe.made_from if name != "init"}
        before: list[Recipe] = [one for parents in several.values() for one in parents]
        if isinstance(self.init, PlannedSet):
            before += self.init.recipes(set_seed)
        elif self.init is not None:
            before.append(self.init)
        recipe = SetRecipe(
            method=self.method,
            version=METHODS.get(self.method).version,
            settings=self.settings.model_dump(mode="json"),
            data=self.data,
            classes=self.info.classes,
            resolution=self.info.resolution,
            ipc=self.ipc,
            init=before[-1].key if self.init is not None else None,
            set_seed=set_seed if METHODS.get(self.method).seeded else 0,
            **{name: tuple(one.key for one in parents) for name, parents in several.items()},
        )
        return [*before, recipe]


def plan_set(
    method: str,
    info: DatasetInfo,
    data: Data,
    ipc: int,
    values: dict[str, Any],
    *,
    teacher: str,
    teacher_of: TeacherOf,
    backbone_of: BackboneOf = no_backbone,
    known_set: KnownSet = lambda _key: None,
    settings_of: SettingsOf = resolve_settings,
) -> PlannedSet:
    """Resolve settings and parents of a set; ``teacher`` is the role that the grid names.

    Raises :class:`Unsupported` if the method does not support this dataset and IPC, and other :class:`RD3Error` for
    mistakes.
    """
    planner = METHODS.get(method)()
    support = planner.supports(info, ipc)
    if not support.ok:
        raise Unsupported(support.reason)
    settings = settings_of(method, info, ipc, values)
    needs = planner.needs(info, settings, teacher)
    teachers = tuple(_of_this_class_list(teacher_of(role), role, info) for role in needs.teachers)
    about: dict[str, Any] = {"data": data, "classes": info.classes, "resolution": info.resolution}
    statistics = tuple(
        StatisticsRecipe(teacher=each.key, collection=needs.collection, **about)
        for each in (teachers if needs.collection is not None else ())
    )
    dynamics = tuple(_recorded(recording, teacher_of(recording.role), about) for recording in needs.dynamics)
    backbones = tuple(backbone_of(role) for role in needs.backbones)
    pairs = zip(needs.derived, backbones, strict=False)
    derived = tuple(_derived(derive, backbone, about) for derive, backbone in pairs)
    check_start(needs.init, info, ipc, settings_of)
    init: PlannedSet | SetRecipe | None = None
    if needs.init in METHODS.names():  # a set that is generated first
        lookups: dict[str, Any] = {"teacher_of": teacher_of, "backbone_of": backbone_of, "settings_of": settings_of}
        init = plan_set(needs.init, info, data, ipc, {}, teacher=teacher, **lookups)
    elif needs.init != NOISE:
        init = _known_start(needs.init, info, data, ipc, known_set)
    return PlannedSet(method, settings, info, data, ipc, teachers, statistics, dynamics, backbones, derived, init)


def _recorded(recording: Recording, teacher: TeacherRecipe, about: dict[str, Any]) -> TrainingDynamicsRecipe:
    """The recipe of a recorded training: that of ``teacher``, with a seed for each run, on the data in ``about``."""
    if teacher.training is None or teacher.seed is None:
        raise Unsupported(f"the training of teacher {recording.role} cannot be recorded, as its weights are imported")
    return TrainingDynamicsRecipe(
        network=teacher.network,
        normalisation=teacher.normalisation,
        training=teacher.training,
        precision=teacher.precision or "auto",
        seed=teacher.seed + recording.run,
        **about,
    )


def _derived(derive: Derive, backbone: BackboneRecipe, about: dict[str, Any]) -> DerivedRecipe:
    return DerivedRecipe(
        step=derive.step,
        version=DERIVATIONS.get(derive.step).version,
        settings=derive.settings.model_dump(mode="json"),
        backbone=backbone.key,
        **about,
    )


def _of_this_class_list(teacher: TeacherRecipe, role: str, info: DatasetInfo) -> TeacherRecipe:
    if teacher.classes != info.classes:
        raise ClassOrderError(
            f"Teacher {role} has class list {teacher.classes[:12]}, {info.name} has {info.classes[:12]}.",
            "use a teacher of this dataset, with its classes in the same order",
        )
    return teacher


def check_start(start: str, info: DatasetInfo, ipc: int, settings_of: SettingsOf) -> None:
    """Raise unless ``start`` is noise, a method that itself needs no initial set, or the beginning of a key."""
    if start in METHODS.names():
        needs = METHODS.get(start)().needs(info, settings_of(start, info, ipc, {}), "")
        if needs.init != NOISE:
            raise BadValue(
                f"A set cannot start from method {start}, which needs an initial set itself.", "use a set's key"
            )
    elif start != NOISE and not re.fullmatch("[0-9a-f]{1,64}", start):
        raise _no_start(start)


def _no_start(start: str) -> UnknownName:
    return UnknownName(f"There is no start {start!r}.", did_you_mean(start, [NOISE, *METHODS.names()]))


def _known_start(start: str, info: DatasetInfo, data: Data, ipc: int, known_set: KnownSet) -> SetRecipe:
    """The initial set with this key in the ledger; raises :class:`RD3Error` for one that does not fit."""
    known = known_set(start)
    if known is None:
        raise _no_start(start)
    what = f"The set {known.key[:12]} to start from"
    check_known_set(known, what, info)
    if known.ipc < ipc:
        raise BadValue(
            f"{what} has {known.ipc} images per class, IPC is {ipc}.", "start from a set of at least that IPC"
        )
    if data.split == "fit" and known.data.split != "fit":
        raise BadValue(
            f"{what} was generated from split {known.data.split}, which contains the validation images.",
            "start from a set generated for validation",
        )
    return known


def check_known_set(known: SetRecipe, what: str, info: DatasetInfo) -> None:
    """Raise unless a set of the ledger fits a dataset: its name, resolution and class list; ``what`` names the set."""
    if known.data.name != info.name or known.resolution != info.resolution:
        raise BadValue(
            f"{what} is of {known.data.name} at {known.resolution} pixels, expected {info.name} at {info.resolution}.",
            "use a set of the same dataset",
        )
    if known.classes != info.classes:
        raise ClassOrderError(
            f"{what} has class list {known.classes[:12]}, {info.name} has {info.classes[:12]}.",
            "use a set with the classes in the same order",
        )


def tested_data(known: SetRecipe, info: DatasetInfo, fingerprint: str) -> dict[str, Any]:
    """What evaluations of a set of the ledger state of the dataset: its content and class list as they are now.

    The split stays the one that the set was made from.
    """
    return {"data": known.data.model_copy(update={"fingerprint": fingerprint}), "classes": info.classes}


def largest_sets(recipes: list[Recipe], info_of: Callable[[str], DatasetInfo]) -> dict[str, str]:
    """Maps keys of smaller sets to the key of the largest set with their images, which differs only in its IPC.

    Only for methods whose sets nest, and whose init sets nest as well.
    """
    found: dict[str, str] = {}
    sets = [recipe for recipe in recipes if isinstance(recipe, SetRecipe)]
    # sets with an initial set come second, as they nest only if their initial sets do
    for level in ([one for one in sets if one.init is None], [one for one in sets if one.init is not None]):
        groups: dict[tuple[str, str | None], list[SetRecipe]] = {}
        for recipe in level:
            if not recipe.imported and _nests(recipe, info_of):
                init = found.get(recipe.init, recipe.init) if recipe.init else None
                alike = recipe.model_copy(update={"ipc": 1, "init": None})
                groups.setdefault((alike.key, init), []).append(recipe)
        for group in groups.values():
            most = max(group, key=lambda recipe: recipe.ipc)
            found.update({recipe.key: most.key for recipe in group if recipe.ipc < most.ipc})
    return found


def _nests(recipe: SetRecipe, info_of: Callable[[str], DatasetInfo]) -> bool:
    method = METHODS.get(recipe.method)
    return method().nests(method.Settings.model_validate(recipe.settings), info_of(recipe.data.name))
