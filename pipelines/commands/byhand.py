"""``rd3 distill``, ``rd3 evaluate``, ``rd3 import-results``: one thing at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands._show import console, parse_fields, show_reasons, show_table
from pipelines.settings import session

if TYPE_CHECKING:
    from pipelines.engine.execute import Outcome
    from pipelines.grid.plan import Plan


def add_to(app: typer.Typer) -> None:
    app.command("distill")(distill)
    app.command("evaluate")(evaluate)
    app.command("import-results")(import_outcomes)


def distill(
    method: Annotated[str, typer.Argument(help="rd3 list methods")],
    dataset: Annotated[str, typer.Option(help="rd3 list datasets")],
    ipc: Annotated[int, typer.Option(help="Images per class.", min=1)],
    teacher: Annotated[str | None, typer.Option(help="Role of the teacher, or a network's name.")] = None,
    set_seed: Annotated[int, typer.Option(help="Seed of the set.")] = 0,
    setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, of the method; may be repeated.")] = None,
) -> None:
    """Make one synthetic set; its teacher is trained first where it has a recipe and is missing."""
    from pipelines.byhand import reduced_set, run_recipes, set_of
    from rd3.recipe import SetRecipe

    here = session()
    recipes = set_of(method, dataset, ipc, teacher, set_seed, parse_fields(setting), here)
    finish(run_recipes(recipes, here, planned=show_work))
    made = recipes[-1]
    assert isinstance(made, SetRecipe)
    key = made.key[:12]
    console.print(f"set {key}{said_of(reduced_set(made, here))}. Next: rd3 evaluate {key} --teacher ROLE")


def evaluate(
    key: Annotated[str, typer.Argument(help="The set's key, or its first digits.", metavar="SET")],
    teacher: Annotated[str | None, typer.Option(help="Role of the teacher that labels.")] = None,
    student: Annotated[str | None, typer.Option(help="Network to train (default: the teacher's).")] = None,
    protocol: Annotated[str, typer.Option(help="rd3 list protocols")] = "rd3",
    student_seed: Annotated[list[int] | None, typer.Option(help="May be repeated (default 0, 1, 2).")] = None,
    field: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, of the protocol; may be repeated.")] = None,
) -> None:
    """Train students on a set and test them, each once, on the whole test set."""
    from pipelines.byhand import evaluations_of, reduced, run_recipes
    from rd3.stats import mean, std
    from rd3.store import existing

    here = session()
    seeds = student_seed or [0, 1, 2]
    recipes = evaluations_of(key, teacher, student, protocol, seeds, parse_fields(field), here)
    finish(run_recipes(recipes, here, planned=show_work))
    ledger = here.ledger
    entries = [existing(ledger, "evaluation", recipe.key) for recipe in recipes if recipe.kind == "evaluation"]
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
    spread = f" ± {std(accuracies):.2f}" if len(seeds) > 1 else ""
    console.print(f"top-1 {mean(accuracies):.2f}{spread} % (n={len(seeds)}){said_of(reduced(recipes, protocol, here))}")


def said_of(cut: dict[str, tuple[float, float]]) -> str:
    """What goes with every result of less than published settings."""
    from tracking.report.tables import cuts_text

    return f"; made/published: {cuts_text(cut)}" if cut else ""


def import_outcomes(
    path: Annotated[
        Path, typer.Argument(help="A study, a store folder, a folder of results-*.zip, or one Parquet file of a study.")
    ],
) -> None:
    """Bring results of others, or made without Ray and MLflow, into the ledger and MLflow."""
    from pipelines.transfer.results import import_results

    imported = import_results(path, session())
    show_table(
        [
            {"kind": one.kind, "key": one.key[:12], "what": one.label or f"not taken: {one.lacking}", "new": one.new}
            for one in imported
        ]
    )
    bare = sum(not one.files for one in imported)
    if bare:
        console.print(f"{bare} came without files, which are not in the study: a run that needs them makes them again")
    if any(one.lacking for one in imported):
        raise typer.Exit(3)


def show_work(plan: Plan) -> None:
    """What is there, what is made first and what it takes, before any of it begins."""
    from rd3.campaign.view import span

    for item in plan.items:
        if item.status in ("reuse", "run") and item.key is not None:
            takes = f", about {span(item.cost_s)}" if item.status == "run" else ""
            console.print(f"{item.status:<5}  {item.label} {item.key[:8]}{takes}", markup=False, soft_wrap=True)
    if plan.keys("run"):
        takes = f"about {span(plan.wall_s)} with {plan.slots} at a time (rough, before anything ran)"
        console.print(f"{takes}; starting Ray")


def finish(outcome: Outcome) -> None:
    """Say each reason once, and leave with the outcome's exit code unless all is there."""
    show_reasons((failure.status, failure.reason, failure.label) for failure in outcome.failed)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
