"""``rd3 doctor``: check everything that a grid needs."""

from __future__ import annotations

from typing import Annotated

from typer import Exit, Option

from pipelines.commands._show import JsonOption, show_table
from pipelines.settings import session


def doctor(
    address: Annotated[
        str | None,
        Option(envvar="RAY_ADDRESS", help="Address of a Ray cluster; one of its workers is checked as well."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check versions, device, disk, tracking server, artifacts, clocks and datasets, here and on a Ray worker.

    Exits with code 3 if any check fails; each failed check comes with a fix.
    """
    from pipelines.cluster.doctor import rows_here, rows_there

    here = session()
    rows = [*rows_here(here), *(rows_there(here, address) if address else ())]
    show_table([row._asdict() for row in rows], as_json=as_json)
    if any(row.state == "wrong" for row in rows):
        raise Exit(3)
