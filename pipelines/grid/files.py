"""Grid files: YAML descriptions of studies.

A grid is a product of methods, datasets, IPC, students, protocols and seeds.  ``load_grid`` reads one by name (built-in
grids are in ``grids/``) or by path, and reports all mistakes at once.  Datasets need not be on disk.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pipelines.grid.catalog import Catalog
from pipelines.grid.check import check_document
from pipelines.grid.located_yaml import GridErrors, Located, Problem, read_located
from pipelines.grid.values import Chosen, Grid, Part
from rd3.errors import BadValue, DataMissing, UnknownName
from rd3.registry import did_you_mean

__all__ = ["Chosen", "Grid", "GridErrors", "Part", "Problem", "load_grid", "parse_grid", "shipped_grids"]


def _folder() -> Any:
    return files("pipelines").joinpath("grids")


def file_names(folder: Any) -> list[str]:
    """Names of the YAML files in a folder of the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def shipped_grids() -> list[str]:
    """Names of the built-in grids."""
    return file_names(_folder())


def load_grid(source: str | Path, catalog: Catalog | None = None) -> Grid:
    """Load a grid by name or path; raises :class:`GridErrors` with all mistakes of the file.

    ``catalog``: the names it may refer to (default: the built-in ones).
    """
    name, content = read_named(source, _folder(), "grid")
    return parse_grid(content, name, catalog)


def read_named(source: str | Path, shipped: Any, what: str) -> tuple[str, str]:
    """Name and text of a built-in file of kind ``what`` (grid, sweep) in ``shipped``, or of the file at a path."""
    text, names = str(source), file_names(shipped)
    if text in names:
        return text, shipped.joinpath(f"{text}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise DataMissing(
                f"There is no {what} file {text}.", f"check the path; `rd3 list {what}s` lists the built-in ones"
            )
        raise UnknownName(f"There is no {what} {text!r}.", did_you_mean(text, names))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("the file", f"Cannot be read as UTF-8 text ({error}).")
        raise GridErrors(text, [problem], what.capitalize()) from None
    other = _other_kind(content, what)
    if other is not None:
        raise BadValue(f"{text} is a {other}, not a {what}.", f"use `rd3 {_COMMANDS[other]} {text}`")
    return path.stem, content


_COMMANDS = {"grid": "run", "sweep": "sweep"}


def _other_kind(content: str, what: str) -> str | None:
    """The kind of a file by its distinctive keys, if it is not ``what``; else None."""
    data = read_located(content).data
    keys = set(data) if isinstance(data, dict) else set()
    kinds = [kind for kind, own in (("grid", {"datasets"}), ("sweep", {"space", "trials"})) if keys & own]
    return kinds[0] if kinds and what not in kinds else None


def parse_grid(text: str, name: str, catalog: Catalog | None = None) -> Grid:
    """Parse the YAML text of a grid; ``name`` is used if the text has none."""
    document: Located = read_located(text)
    unreadable = bool(document.problems) and document.data is None
    grid = None if unreadable else check_document(document, name, text, catalog or Catalog())
    if grid is None or document.problems:
        raise GridErrors(name, sorted(document.problems, key=lambda problem: problem.line or 0))
    return grid
