"""``rd3 distill``, ``rd3 evaluate``, ``rd3 import-results``: single steps without a grid file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from pipelines.commands._show import console, parse_fields, show_reasons, show_table
from pipelines.settings import writing_session
from rd3.duration import duration
from rd3.seeding import BIGGEST_SEED

if TYPE_CHECKING:
    from pipelines.engine.execute import Outcome
    from pipelines.grid.plan import Plan
    from pipelines.settings import Session
    from rd3.recipe import Recipe


def distill(
    method: Annotated[str, Argument(help="Name of the method (rd3 list methods).")],
    dataset: Annotated[str, Option(help="Name of the dataset (rd3 list datasets).")],
    ipc: Annotated[int, Option(help="Images per class.", min=1)],
    teacher: Annotated[str | None, Option(help="Teacher role or network name.")] = None,
    set_seed: Annotated[int, Option(help="Random seed of the set.", min=0, max=BIGGEST_SEED)] = 0,
    setting: Annotated[list[str] | None, Option(help="Method setting as NAME=VALUE; repeatable.")] = None,
) -> None:
    """Generate one synthetic set; train its teacher first if it is missing."""
    from pipelines.byhand import reduced_set, set_of
    from pipelines.grid.catalog import Catalog
    from rd3.recipe import SetRecipe

    here = writing_session()
    catalog = Catalog.of(here)
    recipes = set_of(method, dataset, ipc, teacher, set_seed, parse_fields(setting), catalog)
    run_or_exit(recipes, here)
    recipe = recipes[-1]
    assert isinstance(recipe, SetRecipe)
    key = recipe.key[:12]
    console.print(f"set {key}{reductions_text(reduced_set(recipe, catalog))}. Next: rd3 evaluate {key} --teacher ROLE")


def evaluate(
    key: Annotated[str, Argument(help="Key or key prefix of the set.", metavar="SET")],
    teacher: Annotated[str | None, Option(help="Role of the teacher that provides soft labels.")] = None,
    student: Annotated[str | None, Option(help="Student network (default: the teacher's).")] = None,
    protocol: Annotated[str, Option(help="Evaluation protocol (rd3 list protocols).")] = "rd3",
    student_seed: Annotated[
        list[int] | None,
        Option(help="Random seed of a student; repeatable (default: 0, 1, 2).", min=0, max=BIGGEST_SEED),
    ] = None,
    field: Annotated[list[str] | None, Option(help="Protocol field as NAME=VALUE; repeatable.")] = None,
) -> None:
    """Train students on a synthetic set and test each once on the full test set."""
    from pipelines.byhand import evaluations_of, reduced
    from pipelines.grid.catalog import Catalog
    from rd3.stats import mean, std
    from rd3.store import existing

    here = writing_session()
    catalog, seeds = Catalog.of(here), list(dict.fromkeys(student_seed or [0, 1, 2]))
    recipes = evaluations_of(key, teacher, student, protocol, seeds, parse_fields(field), catalog)
    run_or_exit(recipes, here)
    entries = [existing(here.ledger, "evaluation", recipe.key) for recipe in recipes if recipe.kind == "evaluation"]
    show_table(
        [
            {
                "evaluation": entry.key[:12],
                "seed": entry.recipe["student_seed"],
                "top1_pct": f"{entry.result['top1_pct']:.2f}",
                "correct": f"{entry.result['correct']}/{entry.result['tested']}",
            }
            for entry in entries
        ]
    )
    accuracies = [entry.result["top1_pct"] for entry in entries]
    deviation = f" ± {std(accuracies):.2f}" if len(seeds) > 1 else ""
    reductions = reductions_text(reduced(recipes, protocol, teacher, catalog))
    console.print(f"top-1 {mean(accuracies):.2f}{deviation} % (n={len(seeds)}){reductions}")


def reductions_text(cut: dict[str, tuple[float, float]]) -> str:
    """Note for results obtained with settings reduced from the published ones."""
    from tracking.report.tables import reduced_text

    return f"; run/published: {reduced_text(cut)}" if cut else ""


def import_outcomes(
    path: Annotated[
        Path,
        Argument(help="A study, a store folder, a folder of results-*.zip files, or one Parquet file of a study."),
    ],
) -> None:
    """Import results from others, or from runs without Ray and MLflow, into the ledger and MLflow."""
    from pipelines.transfer.results import import_results

    imported = import_results(path, writing_session())
    show_table(
        [
            {"kind": one.kind, "key": one.key[:12], "what": one.label or f"not imported: {one.lacking}", "new": one.new}
            for one in imported
        ]
    )
    bare = sum(not one.files for one in imported)
    if bare:
        console.print(
            f"{bare} imported without files, which the study does not contain: a run that needs them regenerates them"
        )
    if any(one.lacking for one in imported):
        raise Exit(3)


def show_work(plan: Plan) -> None:
    """Print what is reused, what will run, and the expected time, before anything starts."""
    for item in plan.items:
        if item.status in ("reuse", "run") and item.key is not None:
            takes = f", about {duration(item.cost_s)}" if item.status == "run" else ""
            console.print(f"{item.status:<5}  {item.label} {item.key[:8]}{takes}")
    if plan.keys("run"):
        estimate = f"about {duration(plan.wall_s)} with {plan.slots} in parallel (rough estimate)"
        console.print(f"{estimate}; starting Ray")


def show_failures(outcome: Outcome) -> None:
    """Print each failure reason once."""
    show_reasons((failure.status, failure.reason, failure.label) for failure in outcome.failed)


def run_or_exit(recipes: Sequence[Recipe], here: Session) -> None:
    """Run those of the recipes that have no result yet; exits with the outcome's code unless all succeeded."""
    from pipelines.byhand import run_recipes

    outcome = run_recipes(recipes, here, show_work)
    show_failures(outcome)
    if outcome.exit_code:
        raise Exit(outcome.exit_code)
