"""Recipes without a grid file, for ``rd3 distill``, ``rd3 evaluate`` and ``rd3 teacher train``; run as a grid's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.engine.execute import Outcome, execute
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import Plan, plan_session
from pipelines.settings import Session
from rd3.datasets import DatasetInfo, dataset_fingerprint, dataset_info
from rd3.errors import BadValue, DataMissing, Unsupported
from rd3.methods import METHODS
from rd3.methods._base import reductions as settings_reductions
from rd3.planning.sets import plan_set
from rd3.planning.teacher_roles import teacher_recipe, teacher_role
from rd3.protocol import preset_reader, reductions, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Recipe, SetRecipe, TeacherRecipe
from rd3.store import existing
from tracking.ledger.ledger import recipe_of


def teacher_of(dataset: str, role: str, session: Session) -> TeacherRecipe:
    """The recipe of a teacher role; raises DataMissing, with the import command, for a teacher not yet imported."""
    info = dataset_info(dataset, session.roots)
    found = teacher_role(info, role, session.ledger.role)
    recipe = teacher_recipe(found, info, dataset_fingerprint(dataset, session.roots))
    if found.hint and recipe.key not in session.ledger.keys("teacher"):
        raise DataMissing(f"Teacher {role} of {dataset} must be imported.", found.hint)
    return recipe


def set_of(
    method: str, dataset: str, ipc: int, teacher: str | None, seed: int, settings: dict[str, Any], session: Session
) -> list[Recipe]:
    """The recipe of a set, preceded by those of its parents."""

    def role_of(role: str) -> TeacherRecipe:
        if not role:
            raise BadValue(f"Method {method} needs a teacher.", "give its role: --teacher ROLE")
        return teacher_of(dataset, role, session)

    try:
        planned = plan_set(
            method,
            dataset_info(dataset, session.roots),
            Data(name=dataset, fingerprint=dataset_fingerprint(dataset, session.roots)),
            ipc,
            settings,
            teacher=teacher or "",
            teacher_of=role_of,
            known_set=session.ledger.known_set,
        )
    except Unsupported as error:
        raise Unsupported(f"Method {method} does not support {dataset} at IPC {ipc}: {error.message}.") from None
    return planned.recipes(seed)


def evaluations_of(
    key: str,
    teacher: str | None,
    student: str | None,
    protocol: str,
    seeds: Sequence[int],
    fields: dict[str, Any],
    session: Session,
) -> list[Recipe]:
    """Evaluation recipes of a set in the ledger, one per student seed, preceded by those of the teacher and the set."""
    ledger = session.ledger
    set_recipe = recipe_of(existing(ledger, "set", ledger.resolve("set", key)))
    assert isinstance(set_recipe, SetRecipe)
    info = dataset_info(set_recipe.data.name, session.roots)
    label_teacher = teacher_of(info.name, teacher, session) if teacher else None
    network = student or (label_teacher.network if label_teacher is not None else None)
    if network is None:
        raise BadValue("Neither a student nor a teacher is given.", "give --student NETWORK or --teacher ROLE")
    soft = fields.get("labels", "soft") == "soft"
    if soft and label_teacher is None:
        raise BadValue("Soft labels need a teacher.", "give --teacher ROLE, or --field labels=hard")
    resolved = resolve_protocol(
        preset_reader(session.presets)(protocol),
        factor=info.factor,
        same_network=label_teacher is not None and label_teacher.network == network,
        set_size=set_recipe.ipc * info.num_classes,
        overrides=fields,
    )
    data = set_recipe.data.model_copy(update={"fingerprint": dataset_fingerprint(info.name, session.roots)})
    before: list[Recipe] = [label_teacher, set_recipe] if soft and label_teacher is not None else [set_recipe]
    evaluations = [
        EvaluationRecipe.of(
            set_recipe,
            teacher=label_teacher,
            protocol=resolved,
            student=network,
            student_seed=seed,
            normalisation=info.normalisation,
            data=data,
            classes=info.classes,
        )
        for seed in seeds
    ]
    return [*before, *evaluations]


def reduced_set(set_recipe: SetRecipe, session: Session) -> dict[str, tuple[float, float]]:
    """Settings of a set below the published values: name to (run, published)."""
    if set_recipe.imported or set_recipe.method not in METHODS:  # imported, or by a plugin that is not installed
        return {}
    settings = METHODS.get(set_recipe.method).Settings.model_validate(set_recipe.settings)
    return settings_reductions(
        set_recipe.method, dataset_info(set_recipe.data.name, session.roots), settings, set_recipe.ipc
    )


def reduced(recipes: Sequence[Recipe], protocol: str, session: Session) -> dict[str, tuple[float, float]]:
    """As :func:`reduced_set`, for evaluations under a protocol and their sets."""
    cut: dict[str, tuple[float, float]] = {}
    for recipe in recipes:
        if isinstance(recipe, SetRecipe):
            cut |= reduced_set(recipe, session)
        elif isinstance(recipe, EvaluationRecipe):
            cut |= reductions(preset_reader(session.presets)(protocol), recipe.protocol)
    return cut


def run_recipes(
    recipes: Sequence[Recipe],
    session: Session,
    *,
    address: str | None = None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> Outcome:
    """Run the recipes that have no result yet, parents first; ``planned`` is called with the plan before the start."""
    infos: dict[str, DatasetInfo] = {
        name: dataset_info(name, session.roots) for name in {recipe.data.name for recipe in recipes}
    }
    expansion = Expansion(
        recipes={recipe.key: recipe for recipe in recipes},
        labels={recipe.key: _label(recipe) for recipe in recipes},
        infos=infos,
    )
    plan = plan_session(expansion, session)
    planned(plan)
    return execute(expansion, plan, session, address=address)


def _label(recipe: Recipe) -> str:
    """A short name with the number of epochs."""
    rule = recipe.protocol if isinstance(recipe, EvaluationRecipe) else getattr(recipe, "training", None)
    return f"{recipe.label()} ({rule.epochs} epochs)" if rule is not None else recipe.label()
