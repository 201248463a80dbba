"""The ``rd3`` command.  Each group of commands is a module in :mod:`pipelines.commands`.

Exit codes: 0 success; 2 user error, explained in one sentence, nothing written; 3 some recipes failed; 5 another driver
uses the ledger; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

from typer import Exit, Option, Typer

from pipelines.cluster.local import exit_if_lost
from pipelines.commands import (
    artifacts,
    byhand,
    calibrate,
    data,
    diffusion,
    doctor,
    grid,
    infra,
    jobs,
    labels,
    ledger,
    listing,
    method,
    protocol,
    sets,
    sweep,
    teacher,
)
from pipelines.commands._show import console, exit_on_error
from pipelines.terminal import output_errors
from rd3 import __version__
from rd3.processes import machine_limits_as_errors

app = Typer(
    name="rd3",
    help="Generate distilled datasets, train students on them under one fixed protocol, compare the results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("list")(listing.list_things)
app.command("plan")(grid.plan)
app.command("run")(grid.run)
app.command("status")(grid.status)
app.command("report")(grid.report)
app.command("publish")(grid.publish)
app.command("export-results")(grid.export_outcomes)
app.command("sweep")(sweep.sweep)
app.command("distill")(byhand.distill)
app.command("evaluate")(byhand.evaluate)
app.command("import-results")(byhand.import_outcomes)
app.command("doctor")(doctor.doctor)
app.command("calibrate")(calibrate.calibrate)
app.command("submit")(jobs.submit)
for group in (data, jobs, teacher, diffusion, sets, labels, protocol, method, artifacts, ledger, infra):
    app.add_typer(group.app)


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"rd3 {__version__}")
        raise Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of ``rd3`` itself."""


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; ``words``: the command line, else the process's own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # MLflow imports matplotlib, which warns of a HOME that it cannot write, and uses a temporary folder.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with exit_on_error(), output_errors(), machine_limits_as_errors():
            app(words)
    except SystemExit as end:
        exit_if_lost(end.code)  # threads of a Ray that has died would block the ordinary end
        raise


if __name__ == "__main__":
    main()
