"""Recipes without a grid file, for ``rd3 distill``, ``rd3 evaluate`` and ``rd3 teacher train``; run as a grid's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.engine.execute import Outcome, execute
from pipelines.grid.catalog import Catalog, Frame
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import Plan, plan_session
from pipelines.settings import Session
from rd3.datasets import dataset_info
from rd3.errors import BadValue, DataMissing, RD3Error, UnknownName, Unsupported
from rd3.methods import METHODS
from rd3.methods._base import reductions as settings_reductions
from rd3.planning.backbones import backbone_recipe
from rd3.planning.sets import plan_set, tested_data
from rd3.planning.teacher_roles import teacher_recipe, teacher_role
from rd3.protocol import reductions
from rd3.recipe import BackboneRecipe, Data, EvaluationRecipe, Recipe, SetRecipe, TeacherRecipe
from tracking.ledger.ledger import recipe_of


def teacher_of(dataset: str, role: str, catalog: Catalog) -> TeacherRecipe:
    """The recipe of a teacher role; raises DataMissing, with the import command, for a teacher not yet imported."""
    found = catalog.role(dataset, role)
    recipe = teacher_recipe(found, catalog.dataset(dataset), catalog.fingerprint(dataset))
    _require_import(recipe, role, found.hint, catalog)
    return recipe


def backbone_of(dataset: str, role: str, catalog: Catalog) -> BackboneRecipe:
    """The recipe of a backbone role; raises DataMissing, with the import command, for a model not yet imported."""
    found = catalog.backbone(dataset, role)
    recipe = backbone_recipe(found, catalog.dataset(dataset), catalog.fingerprint(dataset))
    _require_import(recipe, role, found.hint, catalog)
    return recipe


def _require_import(recipe: Recipe, role: str, hint: str, catalog: Catalog) -> None:
    """``hint``: the import command of a network that RD3 does not train, else empty."""
    if hint and recipe.key not in catalog.required_ledger.keys(recipe.kind):
        raise DataMissing(f"{recipe.kind.capitalize()} {role} of {recipe.data.name} must be imported.", hint)


def role_change(dataset: str, role: str, recipe: TeacherRecipe, session: Session) -> str:
    """One sentence on who held a role before this teacher; to be called before the role is set."""
    new = _teacher_text(recipe, session)
    try:
        info = dataset_info(dataset, session.roots)
        found = teacher_role(info, role, session.ledger.role)
    except UnknownName:
        return f"role {role} of {dataset}: {new}; it is new"
    except RD3Error as error:
        return f"role {role} of {dataset}: {new}, in place of one that cannot be read ({error.message})"
    if found.registered is None:
        how = "an import" if found.training is None else "trained by RD3"
        return f"role {role} of {dataset}: {new}, in place of RD3's own, {found.network} ({how}; {found.source})"
    if found.registered.key == recipe.key:
        return f"role {role} of {dataset}: {new}, as before"
    return f"role {role} of {dataset}: from {_teacher_text(found.registered, session)} to {new}"


def _teacher_text(recipe: Recipe, session: Session) -> str:
    assert isinstance(recipe, TeacherRecipe)
    entry = session.ledger.find("teacher", recipe.key)
    score = entry.result.get("top1_pct") if entry is not None else None
    return f"teacher {recipe.key[:12]} ({recipe.network}{'' if score is None else f', {score:.2f} %'})"


def set_of(
    method: str, dataset: str, ipc: int, teacher: str | None, seed: int, settings: dict[str, Any], catalog: Catalog
) -> list[Recipe]:
    """The recipe of a set, preceded by those of its parents.

    Raises :class:`BadValue` for a ``seed`` other than 0 of a method without a set seed.
    """
    if seed != 0 and not METHODS.get(method).seeded:
        raise BadValue(
            f"Method {method} has no set seed: it makes the same set for each, got {seed}.", "leave out --set-seed"
        )

    def role_of(role: str) -> TeacherRecipe:
        if not role:
            raise BadValue(f"Method {method} needs a teacher.", "give its role: --teacher ROLE")
        return teacher_of(dataset, role, catalog)

    try:
        planned = plan_set(
            method,
            catalog.dataset(dataset),
            Data(name=dataset, fingerprint=catalog.fingerprint(dataset)),
            ipc,
            settings,
            teacher=teacher or "",
            teacher_of=role_of,
            backbone_of=lambda role: backbone_of(dataset, role, catalog),
            known_set=catalog.known_set,
            settings_of=catalog.settings,
        )
    except Unsupported as error:
        raise Unsupported(
            f"Method {method} does not support {dataset} at IPC {ipc}: {error.message}.", "choose another IPC or method"
        ) from None
    return planned.recipes(seed)


def evaluations_of(
    key: str,
    teacher: str | None,
    student: str | None,
    protocol: str,
    seeds: Sequence[int],
    fields: dict[str, Any],
    catalog: Catalog,
) -> list[Recipe]:
    """Evaluation recipes of a set in the ledger, one per student seed, preceded by those of the teacher and the set."""
    set_recipe = recipe_of(catalog.required_ledger.named("set", key))
    assert isinstance(set_recipe, SetRecipe)
    info = catalog.dataset(set_recipe.data.name)
    teachers = [teacher_of(info.name, teacher, catalog)] if teacher else []
    teacher_network = teachers[0].network if teachers else None
    network = student or teacher_network
    if network is None:
        raise BadValue("Neither a student nor a teacher is given.", "give --student NETWORK or --teacher ROLE")
    frame = Frame.of(info, set_recipe.ipc, network, teacher_network)
    resolved = catalog.evaluation(protocol, frame, fields)
    resolved.require_fit(info.name, info.resolution, info.num_classes)
    if resolved.taught and not teachers:
        own = ", or --field soft_labels=own for the set's own" if set_recipe.soft_label_kind else ""
        raise BadValue("Soft labels need a teacher.", f"give --teacher ROLE, or --field labels=hard{own}")
    evaluations = [
        EvaluationRecipe.of(
            set_recipe,
            teachers=teachers,
            protocol=resolved,
            student=network,
            student_seed=seed,
            normalisation=info.normalisation,
            **tested_data(set_recipe, info, catalog.fingerprint(info.name)),
        )
        for seed in seeds
    ]
    return [*(teachers if resolved.taught else ()), set_recipe, *evaluations]


def reduced_set(set_recipe: SetRecipe, catalog: Catalog) -> dict[str, tuple[float, float]]:
    """Settings of a set below the published values: name to (run, published)."""
    if set_recipe.imported or set_recipe.method not in METHODS:  # imported, or by a plugin that is not installed
        return {}
    settings = METHODS.get(set_recipe.method).Settings.model_validate(set_recipe.settings)
    return settings_reductions(set_recipe.method, catalog.dataset(set_recipe.data.name), settings, set_recipe.ipc)


def reduced(
    recipes: Sequence[Recipe], protocol: str, teacher: str | None, catalog: Catalog
) -> dict[str, tuple[float, float]]:
    """As :func:`reduced_set`, for the recipes of :func:`evaluations_of`: the set, and evaluations that differ in seeds.

    ``protocol`` and ``teacher``: names of those for which they were made; recipes with hard labels have no teacher.
    """
    set_recipe = next(recipe for recipe in recipes if isinstance(recipe, SetRecipe))
    evaluation = next(recipe for recipe in recipes if isinstance(recipe, EvaluationRecipe))
    info = catalog.dataset(set_recipe.data.name)
    network = catalog.role(info.name, teacher).network if teacher else None
    case = Frame.of(info, set_recipe.ipc, evaluation.student, network).case
    return reduced_set(set_recipe, catalog) | reductions(catalog.protocol(protocol), evaluation.protocol, case)


def run_recipes(recipes: Sequence[Recipe], session: Session, show_plan: Callable[[Plan], None]) -> Outcome:
    """Run the recipes that have no result yet, parents first; ``show_plan`` is called before the start."""
    catalog = Catalog.of(session)
    expansion = Expansion(
        recipes={recipe.key: recipe for recipe in recipes},
        labels={recipe.key: _label(recipe) for recipe in recipes},
        infos={recipe.data.name: catalog.dataset(recipe.data.name) for recipe in recipes},
    )
    plan = plan_session(expansion, session)
    show_plan(plan)
    return execute(expansion, plan, session)


def _label(recipe: Recipe) -> str:
    """A short name with the number of epochs."""
    rule = recipe.protocol if isinstance(recipe, EvaluationRecipe) else getattr(recipe, "training", None)
    return f"{recipe.label()} ({rule.epochs} epochs)" if rule is not None else recipe.label()
