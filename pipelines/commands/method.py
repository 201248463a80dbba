"""``rd3 method``: the card, the test suite and the starting point of a method."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands._show import console
from rd3.errors import BadValue

app = typer.Typer(help="Methods: show, test, new.", no_args_is_help=True)


@app.command("show")
def show(name: str) -> None:
    """Print a method's card: what it does, its source, its deviations, its settings."""
    from rd3.methods import METHODS

    method = METHODS.get(name)
    console.print(f"[bold]{name}[/] version {method.version}\n")
    console.print(inspect.cleandoc(method.__doc__ or ""), markup=False)
    console.print("\n[bold]Settings[/]")
    for field, described in method.Settings.model_fields.items():
        console.print(f"  {field}: {described.default!r}  {described.description or ''}", markup=False)


@app.command("test")
def test(name: str) -> None:
    """Run the conformance suite on a method, yours or ours."""
    from rd3.testing import check_method

    with tempfile.TemporaryDirectory() as folder:
        results = check_method(name, tmp=Path(folder))
    for result in results:
        console.print(f"{'[green]ok  [/]' if result.ok else '[red]FAIL[/]'} {result.name}  ", end="")
        console.print(result.detail, markup=False)
    failed = sum(not result.ok for result in results)
    console.print(f"{len(results) - failed} of {len(results)} checks passed")
    if failed:
        raise typer.Exit(3)


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Name of the method: lower case, digits and underscores.")],
    folder: Annotated[Path, typer.Option(help="Where to write the file.")] = Path(),
) -> None:
    """Write the one file to start a method from."""
    from rd3.testing import template

    if not name.isidentifier() or name != name.lower():
        raise BadValue(f"{name!r} is not a name for a method.", "use lower case letters, digits and underscores")
    path = folder / f"{name}.py"
    if path.exists():
        raise BadValue(f"{path} exists already.", "choose another name or folder")
    path.write_text(template(name))
    console.print(f"wrote {path}")
    console.print("Next: put it into rd3/methods/, or name it in your package's entry points:")
    console.print(f'  [project.entry-points."rd3.methods"]\n  {name} = "your_package.{name}"', markup=False)
    console.print(f"then run: rd3 method test {name}")
