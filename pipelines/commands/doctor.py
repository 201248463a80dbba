"""``rd3 doctor``: does everything that a grid needs answer?"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands._show import show_table
from pipelines.settings import session


def add_to(app: typer.Typer) -> None:
    @app.command("doctor")
    def doctor(
        address: Annotated[
            str | None,
            typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster's address: one of its workers is asked as well."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="As a JSON array of objects.")] = False,
    ) -> None:
        """Check versions, device, disk, tracking server, artifacts, clocks, datasets; and the same on a Ray worker.

        Exit code 3 if anything is wrong; each such row says what to set.
        """
        from pipelines.cluster.doctor import rows_here, rows_there

        here = session()
        rows = [*rows_here(here), *(rows_there(here, address) if address else ())]
        show_table([row._asdict() for row in rows], as_json=as_json)
        if any(row.state == "wrong" for row in rows):
            raise typer.Exit(3)
