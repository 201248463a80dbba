"""``rd3 infra``: prepare the storage of a platform."""

from __future__ import annotations

from typer import Typer

from pipelines.commands._show import console
from pipelines.settings import session

app = Typer(name="infra", help="Prepare a platform.", no_args_is_help=True)


@app.command("init")
def init() -> None:
    """Make the bucket (or folder) of RD3_ARTIFACTS private, set its clean-up rules, and check that it suits RD3.

    Idempotent: running it again changes nothing.
    """
    from tracking.upkeep.health import prepare_store

    for line in prepare_store(session().artifacts):
        console.print(line)
