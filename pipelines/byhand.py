"""One recipe by hand: ``rd3 distill``, ``rd3 evaluate`` and ``rd3 teacher train`` take the same path as a grid."""

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
    """The recipe that a role stands for; an import that nobody made yet is refused with the command that makes it."""
    info = dataset_info(dataset, session.roots)
    found = teacher_role(info, role, session.ledger.role)
    recipe = teacher_recipe(found, info, dataset_fingerprint(dataset, session.roots))
    if found.hint and recipe.key not in session.ledger.keys("teacher"):
        raise DataMissing(f"Teacher {role} of {dataset} has to be imported.", found.hint)
    return recipe


def set_of(
    method: str, dataset: str, ipc: int, teacher: str | None, seed: int, settings: dict[str, Any], session: Session
) -> list[Recipe]:
    """A set's recipe after those of all that it is made from."""

    def role_of(role: str) -> TeacherRecipe:
        if not role:
            raise BadValue(f"Method {method} needs a teacher.", "name its role: --teacher ROLE")
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
        raise Unsupported(f"Method {method} cannot make {dataset} at IPC {ipc}: {error.message}.") from None
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
    """Evaluations of a set that the ledger has, one a student seed, after the recipe of the label teacher."""
    ledger = session.ledger
    made = recipe_of(existing(ledger, "set", ledger.resolve("set", key)))
    assert isinstance(made, SetRecipe)
    info = dataset_info(made.data.name, session.roots)
    label_teacher = teacher_of(info.name, teacher, session) if teacher else None
    network = student or (label_teacher.network if label_teacher is not None else None)
    if network is None:
        raise BadValue("Neither a student nor a teacher is named.", "say --student NETWORK or --teacher ROLE")
    soft = fields.get("labels", "soft") == "soft"
    if soft and label_teacher is None:
        raise BadValue("Soft labels need a teacher.", "say --teacher ROLE, or --field labels=hard")
    resolved = resolve_protocol(
        preset_reader(session.presets)(protocol),
        factor=info.factor,
        same_network=label_teacher is not None and label_teacher.network == network,
        set_size=made.ipc * info.num_classes,
        overrides=fields,
    )
    data = made.data.model_copy(update={"fingerprint": dataset_fingerprint(info.name, session.roots)})
    before: list[Recipe] = [label_teacher, made] if soft and label_teacher is not None else [made]
    evaluations = [
        EvaluationRecipe.of(
            made,
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


def reduced_set(made: SetRecipe, session: Session) -> dict[str, tuple[float, float]]:
    """What a set has less of than its authors published, by setting: (made, published)."""
    if made.content is not None or made.method not in METHODS:  # an import, or of a plugin that is not here
        return {}
    settings = METHODS.get(made.method).Settings.model_validate(made.settings)
    return settings_reductions(made.method, dataset_info(made.data.name, session.roots), settings, made.ipc)


def reduced(recipes: Sequence[Recipe], protocol: str, session: Session) -> dict[str, tuple[float, float]]:
    """As :func:`reduced_set`, of evaluations under a protocol and of the set that they are of."""
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
    """Make what is missing of these recipes, parents before children; ``planned`` hears of it before work begins."""
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
    """A short name, and how long the training is."""
    rule = recipe.protocol if isinstance(recipe, EvaluationRecipe) else getattr(recipe, "training", None)
    return f"{recipe.label()} ({rule.epochs} epochs)" if rule is not None else recipe.label()
