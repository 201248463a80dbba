"""Runs a grid on the cluster that this machine belongs to: what a launcher copies to the head, and what a job starts.

``ray submit CLUSTER.yaml pipelines/run_grid.py -- GRID [options of rd3 run]`` for a grid that ships with RD3.
``rd3 submit`` adds what a grid file of the user's own needs: text, addresses, protocols, and the datasets to pull.
Exit codes are those of ``rd3 run``.
"""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

HOME = "~/.rd3"
"""RD3's home on a node that names none: a job's own folder goes when the job ends."""


def run_grid(
    context: typer.Context,
    grid: Annotated[str, typer.Argument(help="A grid that ships with RD3, or a YAML file on this machine.")],
    text: Annotated[str, typer.Option(help="The grid file's content in URL-safe base64, named GRID.")] = "",
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of an address.", metavar="NAME=VALUE")] = None,
    pull: Annotated[list[str] | None, typer.Option(help="A dataset to pull where this machine lacks it.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="NAME=TEXT of a protocol of the user's own, in URL-safe base64.")
    ] = None,
) -> None:
    """As `rd3 run GRID --address auto`, with the same options."""
    from pipelines import cli
    from pipelines.commands._show import exit_on_error
    from pipelines.settings import addresses, driver_secrets

    with exit_on_error():
        os.environ.update(driver_secrets() | addresses(env or []))
        os.environ.setdefault("RD3_HOME", HOME)
        if text:
            grid = keep(grid, text)
        for word in protocol or []:
            keep_protocol(*word.split("=", 1))
        check_here(grid)
        pull_missing(pull or [])
        cli.main(["run", grid, "--address", "auto", *context.args])


def keep(name: str, text: str) -> str:
    """A grid that came as text, as a file in this machine's home, where `rd3 status` and `rd3 report` find it too."""
    from pipelines.settings import session
    from rd3.store import write_atomically

    path = session().home / "grids" / Path(name).name
    write_atomically(path, base64.urlsafe_b64decode(text))
    return str(path)


def keep_protocol(name: str, text: str) -> None:
    """A protocol that came along, in this machine's home, unless another one has its name there."""
    from pipelines.settings import session
    from rd3.errors import BadValue
    from rd3.store import write_atomically

    path, content = session().presets / f"{Path(name).name}.yaml", base64.urlsafe_b64decode(text)
    if path.exists() and path.read_bytes() != content:
        raise BadValue(
            f"Protocol {name} is another one on the cluster's node {socket.gethostname()}: {path}.",
            "give yours another name, or remove that file",
        )
    write_atomically(path, content)


def pull_missing(names: list[str]) -> None:
    """The datasets that the driver needs for its plan; trials see to their own nodes."""
    if names:
        from pipelines.settings import session
        from pipelines.transfer.datasets import pull

        here = session()
        for name in names:
            pull(name, here)


def check_here(grid: str) -> None:
    """A grid file that is not on this machine is on the submitter's."""
    from rd3.errors import DataMissing

    if Path(grid).suffix in (".yaml", ".yml") and not Path(grid).is_file():
        raise DataMissing(
            f"There is no grid file {grid} on the cluster's node {socket.gethostname()}: a launcher copies only the "
            "script.",
            f"send the grid along: rd3 submit {grid} --launcher CLUSTER.yaml, or rd3 submit {grid} --address URL",
        )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run_grid)

if __name__ == "__main__":
    app()
