"""``rd3 labels``: the soft labels of evaluations, stored ones or a set's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from pipelines.commands._show import console
from pipelines.settings import session

app = Typer(name="labels", help="Soft labels of evaluations, stored ones or a set's own: export.", no_args_is_help=True)


@app.command("export")
def export(
    key: Annotated[str, Argument(help="Key or key prefix of the evaluation.")],
    out: Annotated[Path, Argument(help="New folder for the files.")],
    device: Annotated[str, Option(help="Device of the teachers; that of training gives the same bits.")] = "cpu",
) -> None:
    """Write the soft labels that an evaluation stores (`soft_labels: once` or `stored`; asks its teachers again), or
    those of its set (`own`)."""
    from rd3.perform import export_labels
    from rd3.recipe import EvaluationRecipe, recipe_of_kind

    here = session()
    entry = here.ledger.named("evaluation", key)
    recipe = recipe_of_kind(entry.recipe, EvaluationRecipe)
    written = export_labels(
        recipe, here.store, here.roots, out, device=device, precision=entry.result.get("ran_precision")
    )
    console.print(f"wrote {out}: {written} bytes of labels")
