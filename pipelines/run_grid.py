"""Run a grid on the cluster of this machine: the script that a launcher copies to the head and that a job starts.

``ray submit CLUSTER.yaml pipelines/run_grid.py -- GRID [options of rd3 run]`` for a built-in grid.
``rd3 submit`` adds what a user's own grid file needs: its text, addresses, protocols, and datasets to pull.
Exit codes are those of ``rd3 run``.
"""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option, Typer

from pipelines import cli
from pipelines.commands._show import exit_on_error
from pipelines.grid.files import grid_file
from pipelines.settings import addresses, driver_secrets, session
from pipelines.transfer import datasets
from rd3.errors import BadValue, DataMissing
from rd3.store import write_atomically

HOME = "~/.rd3"
"""RD3's home on a node that does not set one: Ray deletes a job's working directory when the job ends."""


def run_grid(
    context: Context,
    grid: Annotated[str, Argument(help="Name of a built-in grid, or path of a YAML file on this machine.")],
    text: Annotated[str, Option(help="Content of the grid file GRID in URL-safe base64.")] = "",
    file: Annotated[str, Option(help="Name of the file with that content, if GRID is its small size.")] = "",
    env: Annotated[list[str] | None, Option(help="An address as NAME=VALUE; repeatable.", metavar="NAME=VALUE")] = None,
    pull: Annotated[
        list[str] | None, Option(help="Dataset to pull if it is missing on this machine; repeatable.")
    ] = None,
    protocol: Annotated[
        list[str] | None, Option(help="A user's protocol as NAME=TEXT, in URL-safe base64; repeatable.")
    ] = None,
) -> None:
    """Run `rd3 run GRID --address auto` with the same options."""
    with exit_on_error():
        os.environ.update(driver_secrets() | addresses(env or []))
        os.environ["RD3_HOME"] = os.environ.get("RD3_HOME") or HOME
        if text:
            grid = keep(grid, text, file)
        for word in protocol or []:
            keep_protocol(*word.split("=", 1))
        check_here(grid)
        pull_missing(pull or [])
        cli.main(["run", grid, "--address", "auto", *context.args])


def keep(name: str, text: str, file: str = "") -> str:
    """Save the text of a grid in this machine's home, where `rd3 status` and `rd3 report` find it; its path.

    ``file``: the name of the file, if ``name`` is that of its demonstration size.
    """
    path = session().home / "grids" / Path(name).name
    write_atomically(path.with_name(Path(file or name).name), base64.urlsafe_b64decode(text))
    if file:
        path.unlink(missing_ok=True)  # an earlier file of this name would take the place of the demonstration size
    return str(path)


def keep_protocol(name: str, text: str) -> None:
    """Save a submitted protocol in this machine's home; raises BadValue if another one has its name there."""
    path, content = session().presets / f"{Path(name).name}.yaml", base64.urlsafe_b64decode(text)
    if path.exists() and path.read_bytes() != content:
        raise BadValue(
            f"A different protocol {name} already exists on the cluster node {socket.gethostname()}: {path}.",
            "rename yours, or remove that file",
        )
    write_atomically(path, content)


def pull_missing(names: list[str]) -> None:
    """Pull the datasets that the driver needs for its plan; trials pull on their own nodes."""
    for name in names:
        datasets.pull(name, session())


def check_here(grid: str) -> None:
    """Raise DataMissing for a grid file that exists only on the submitting machine."""
    if Path(grid).suffix in (".yaml", ".yml") and grid_file(grid) is None:
        raise DataMissing(
            f"There is no grid file {grid} on the cluster node {socket.gethostname()}: a launcher copies only the "
            "script.",
            f"submit the grid file: rd3 submit {grid} --launcher CLUSTER.yaml, or rd3 submit {grid} --address URL",
        )


app = Typer(add_completion=False, pretty_exceptions_enable=False)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run_grid)

if __name__ == "__main__":
    app()
