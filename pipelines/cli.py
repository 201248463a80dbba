"""The command line: ``rd3``.  Each group of commands is a module of :mod:`pipelines.commands`.

Exit codes: 0 done; 2 a mistake of the user, named in one sentence, nothing written; 3 some recipes failed; 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings

import typer
from rich.console import Console

from pipelines.commands import byhand, data, doctor, grid, listing, method, sets, sweep, teacher
from rd3.errors import RD3Error

app = typer.Typer(
    name="rd3",
    help="Make distilled datasets, train students on them under one frozen protocol, compare.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
listing.add_to(app)
grid.add_to(app)
sweep.add_to(app)
byhand.add_to(app)
doctor.add_to(app)
app.add_typer(data.app, name="data")
app.add_typer(teacher.app, name="teacher")
app.add_typer(sets.app, name="set")
app.add_typer(method.app, name="method")


def main() -> None:
    """Entry point: an :class:`RD3Error` becomes one sentence on stderr and its exit code."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        app()
    except RD3Error as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        console.print(error.message, markup=False)
        if error.fix:
            console.print("[bold]Fix:[/] ", end="")
            console.print(error.fix, markup=False)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
