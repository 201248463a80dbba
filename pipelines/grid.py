"""Grid files: what a study asks for, as YAML, read whole and refused whole.

A grid is a product of methods, datasets, IPC, students, protocols and seeds.  ``load_grid`` reads one by name (those
that ship lie in ``grids/``) or by path, and reports every mistake at once.  No dataset has to be on disk for that.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pipelines.grid_check import check_document
from pipelines.grid_parts import Chosen, Grid, InfoOf, Part, UserRole, no_user_role
from pipelines.places import GridErrors, Located, Problem, read_located
from rd3.datasets import Roots, dataset_info
from rd3.errors import DataMissing, UnknownName
from rd3.registry import did_you_mean

__all__ = [
    "Chosen",
    "Grid",
    "GridErrors",
    "InfoOf",
    "Part",
    "Problem",
    "UserRole",
    "info_reader",
    "load_grid",
    "parse_grid",
    "shipped_grids",
]


def _folder() -> Any:
    return files("pipelines").joinpath("grids")


def shipped_grids() -> list[str]:
    """Names of the grids that ship with RD3."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_grid(source: str | Path, *, info_of: InfoOf | None = None, user_role: UserRole = no_user_role) -> Grid:
    """The grid of that name or at that path; raises :class:`GridErrors` with every mistake of the file.

    ``info_of`` and ``user_role`` add the user's own datasets and teacher roles to those that RD3 knows.
    """
    text = str(source)
    if text in shipped_grids():
        return parse_grid(_folder().joinpath(f"{text}.yaml").read_text(encoding="utf-8"), text, info_of, user_role)
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise DataMissing(
                f"There is no grid file {text}.", "check the path; `rd3 list grids` shows those that ship"
            )
        raise UnknownName(f"There is no grid {text!r}.", did_you_mean(text, shipped_grids()))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GridErrors(text, [Problem("the file", f"Cannot be read as UTF-8 text ({error}).")]) from None
    return parse_grid(content, path.stem, info_of, user_role)


def parse_grid(text: str, name: str, info_of: InfoOf | None = None, user_role: UserRole = no_user_role) -> Grid:
    """The grid that a YAML text describes; ``name`` is used where the text gives none."""
    document: Located = read_located(text)
    unreadable = bool(document.problems) and document.data is None
    grid = None if unreadable else check_document(document, name, text, info_of or dataset_info, user_role)
    if grid is None or document.problems:
        raise GridErrors(name, sorted(document.problems, key=lambda problem: problem.line or 0))
    return grid


def info_reader(roots: Roots) -> InfoOf:
    """Facts of a dataset, the user's own ones included."""
    return lambda name: dataset_info(name, roots)
