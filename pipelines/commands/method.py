"""``rd3 method``: show a method's card, check a method, create a new one.

The card is the docstring of the method with its settings and their published values (presets).  The conformance suite
(:mod:`rd3.testing`) checks what RD3 expects of every method, such as equal images when it is interrupted and resumed.
"""

from __future__ import annotations

import inspect
import keyword
import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from pipelines.commands._show import console
from rd3.errors import BadValue, UnknownName

DATASETS = {"32px": "others at 32 pixels", "64px": "others at 64 pixels", "default": "all others"}
"""Titles of the rows of a method's presets that are not named after a dataset."""

app = Typer(name="method", help="Methods: show, test, new.", no_args_is_help=True)


@app.command("show")
def show(name: Annotated[str, Argument(help="Name of the method (rd3 list methods).")]) -> None:
    """Print a method's card: what it does, its source, its deviations, its settings."""
    from rd3.methods import METHODS
    from rd3.methods._base import presets_of

    method = METHODS.get(name)
    console.print(name, style="bold", end=" ")
    console.print(f"version {method.version}\n")
    console.print(inspect.cleandoc(method.__doc__ or ""))
    console.print("\nSettings", style="bold", end="")
    console.print("" if method.Settings.model_fields else ": none")
    for field, described in method.Settings.model_fields.items():
        value = "by dataset" if described.is_required() else repr(described.get_default(call_default_factory=True))
        meaning = " ".join((described.description or "").split())
        console.print(f"  {field}: {value}  {meaning}".rstrip())
    for dataset, row in presets_of(name).items():
        own = [f"{field}={row[field]!r}" for field in method.Settings.model_fields if field in row]
        # values that differ at some numbers of images per class
        own += [f"at IPC {ipc}: {field}={value!r}" for ipc, more in row.get("at_ipc", {}).items()
                for field, value in more.items() if field in method.Settings.model_fields]  # fmt: skip
        console.print(f"\nOn {DATASETS.get(dataset, dataset)}", style="bold", end=" ")
        console.print(f"({row['source']})\n  {', '.join(own)}")


@app.command("test")
def test(
    name: Annotated[str, Argument(help="Name of a method, or path of its Python file.", metavar="METHOD")],
) -> None:
    """Run the conformance suite on a method."""
    from rd3.testing import check_method

    failed = 0
    for method in named(name):
        with tempfile.TemporaryDirectory() as folder:
            results = check_method(method, tmp=Path(folder))
        for result in results:
            mark, color = ("ok", "green") if result.ok else ("FAIL", "red") if result.ran else ("-", "yellow")
            console.print(f"{mark:<4}", style=color, end=" ")
            console.print(f"{result.name}  {result.detail}")
        passed, unrun = sum(result.ok for result in results), sum(not result.ran for result in results)
        failed += len(results) - passed
        more = f", {unrun} not run because of an error above" if unrun else ""
        console.print(f"{method}: {passed} of {len(results)} checks passed{more}")
    if failed:
        raise Exit(3)


def named(name: str) -> list[str]:
    """Names of the methods that a file registers, or the given name; suggests a file of that name in this folder."""
    from rd3.methods import METHODS

    if name.endswith(".py") or Path(name).name != name:
        return METHODS.load_file(Path(name))
    if name not in METHODS and name not in METHODS.broken() and Path(f"{name}.py").is_file():
        raise UnknownName(
            f"There is no method {name!r}, but there is a file {name}.py in this folder.",
            f"test it with `rd3 method test ./{name}.py`, or move it into {methods_folder()}",
        )
    return [name]


def methods_folder() -> str:
    """The folder in which RD3 discovers methods."""
    from rd3 import methods

    return str(Path(methods.__path__[0]))


@app.command("new")
def new(
    name: Annotated[str, Argument(help="Name of the method: lower-case letters, digits and underscores.")],
    folder: Annotated[Path, Option(help="Output folder.")] = Path(),
) -> None:
    """Write a template file for a new method."""
    from rd3.store import write_errors
    from rd3.testing import template

    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise BadValue(
            f"Invalid method name {name!r}.", "use lower-case letters, digits and underscores, and no keyword of Python"
        )
    path = folder / f"{name}.py"
    if path.exists():
        raise BadValue(f"{path} already exists.", "choose another name or folder")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template(name))
    shown = path if path.is_absolute() or len(path.parts) > 1 else f"./{path}"
    console.print(
        f"wrote {path}",
        f"Test it: rd3 method test {shown}",
        f"To use it in grids, move it into {methods_folder()},",
        "or declare it in the entry points of your package:",
        f'  [project.entry-points."rd3.methods"]\n  {name} = "your_package.{name}"',
        sep="\n",
    )
