"""``rd3 ledger``: upgrade results of older versions to the current format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from pipelines.commands._show import console, show_reasons
from pipelines.settings import writing_session

app = Typer(name="ledger", help="Upgrade the ledger to the current format.", no_args_is_help=True)


@app.command("upgrade")
def upgrade(
    folder: Annotated[Path | None, Argument(help="A store folder with results (default: the ledger).")] = None,
    remove_old: Annotated[
        bool,
        Option(
            "--remove-old", help="Delete the old entries afterwards; their files are kept, as the new entries use them."
        ),
    ] = False,
) -> None:
    """Rewrite recipes and keys of an older format; results and files are kept.  Idempotent."""
    from pipelines.upgrade import tag_runs_with_new_keys, upgrade_ledger, upgrade_presets
    from rd3.errors import DataMissing
    from tracking.ledger.ledger import Ledger
    from tracking.upkeep.upgrade import remove_former

    here = writing_session()
    if folder is not None and not (folder / "by-key").is_dir():
        fix = "give a store folder; convert a study, a folder of Parquet files, with `rd3 export-results PATH DIR`"
        raise DataMissing(f"{folder} is not a store: it has no by-key folder.", fix)
    ledger = Ledger(str(folder) if folder is not None else here.artifacts)
    with ledger.lease():
        outcome = upgrade_ledger(ledger, here.roots)
        console.print(f"{len(outcome.upgraded)} entries of {ledger.root} upgraded")
        for one in outcome.merged:
            console.print(f"{one.kind} {one.old[:12]} is the same experiment as {one.new[:12]}, which is kept")
        show_reasons(("not upgraded", one.reason, f"{one.kind} {one.key[:12]}") for one in outcome.left)
        if folder is None:
            if changed := upgrade_presets(here.presets):
                console.print(f"protocols upgraded: {', '.join(changed)}")
            tag_runs_with_new_keys(here, ledger)
        if remove_old:
            console.print(f"{remove_former(ledger)} old entries removed")
    if outcome.left:
        raise Exit(3)
