"""Grid files, YAML descriptions of studies, read by name (built-in grids are in ``grids/``) or by path.

All mistakes are reported at once.  Datasets need not be on disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipelines.grid.catalog import Catalog
from pipelines.grid.check import check_document
from pipelines.grid.located_yaml import GridErrors, Located, Problem, read_located
from pipelines.grid.values import Grid
from rd3.errors import BadValue, DataMissing, UnknownName
from rd3.foreign_files import read_text
from rd3.registry import did_you_mean
from rd3.yaml_numbers import EXPONENTS

T = TypeVar("T")

_GRIDS = files("pipelines") / "grids"
SMALL = "-small"
OTHER_NAMES = {"figure1": "table2", "figure5": "table4", "figure6": "figure4"}
"""Figures of the paper that show the results of another table or figure, to the grid of that one."""


def file_names(folder: Traversable) -> list[str]:
    """Names of the YAML files in a folder of the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def shipped_grids() -> list[str]:
    """Names of the built-in grids, in all their sizes."""
    found = []
    for name in file_names(_GRIDS):
        has_small = "\nsmall:" in (_GRIDS / f"{name}.yaml").read_text(encoding="utf-8")
        found += [name, f"{name}{SMALL}"] if has_small else [name]
    return found


def load_grid(source: str | Path | Mapping[str, Any], catalog: Catalog | None = None) -> Grid:
    """Load a grid by name or path, or from the content of a file; raises :class:`GridErrors` with all mistakes.

    ``NAME-small`` is the demonstration size of the grid ``NAME``, as is ``FILE-small.yaml`` of ``FILE.yaml``.  A figure
    of ``OTHER_NAMES`` is the grid that runs it.  ``catalog``: the names it may refer to (default: the built-in ones).
    """
    if isinstance(source, Mapping):
        return parse_grid(_as_text(source), "grid", catalog)
    name = str(source).removesuffix(SMALL)
    source = OTHER_NAMES.get(name, name) + str(source).removeprefix(name)
    full = _full(source)
    document = read_named(full or source, _GRIDS, "grid")
    document.source = source
    return checked(partial(check_document, small=full is not None), document, catalog)


class _Dumper(yaml.SafeDumper):
    """Writes a list that is used twice in full, as grid files have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(*EXPONENTS)  # text that would be read as a number is put in quotes


def _as_text(source: Mapping[str, Any]) -> str:
    """The content of a grid file as YAML; raises :class:`BadValue` for values that YAML does not have."""
    try:
        return yaml.dump(dict(source), Dumper=_Dumper, sort_keys=False)
    except yaml.representer.RepresenterError as error:
        kind = type(error.args[-1]).__name__
        raise BadValue(
            f"A grid has a value of type {kind}, {str(error.args[-1])[:60]!r}.",
            "use numbers, text, lists and dicts",
        ) from None


def _full(source: str) -> str | None:
    """``NAME`` or ``FILE.yaml`` for ``NAME-small`` or ``FILE-small.yaml``, its demonstration size; None for others."""
    path = Path(source)
    if path.stem == SMALL or source in file_names(_GRIDS) or _is_file(path) or not path.stem.endswith(SMALL):
        return None
    full = str(path.with_name(path.stem.removesuffix(SMALL) + path.suffix))
    return full if full in file_names(_GRIDS) or _is_file(Path(full)) else None


def grid_file(source: str) -> Path | None:
    """The grid file at a path, also at ``FILE-small.yaml``; None for a built-in grid."""
    path = Path(_full(source) or source)
    return path if str(path) not in file_names(_GRIDS) and _is_file(path) else None


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False for what cannot be a path, such as the text of a grid."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def parse_grid(text: str, name: str, catalog: Catalog | None = None) -> Grid:
    """Parse the YAML text of a grid; ``name`` is used if the text has none."""
    return checked(check_document, read_located(text, name), catalog)


def checked(check: Callable[[Located, Catalog], T | None], document: Located, catalog: Catalog | None) -> T:
    """The grid or sweep that ``check`` finds in a document; raises :class:`GridErrors` with all mistakes."""
    unreadable = bool(document.problems) and document.data is None
    found = None if unreadable else check(document, catalog or Catalog())
    if found is None or document.problems:
        raise GridErrors(document.source or document.name, document.problems, document.kind)
    return found


def read_named(source: str, shipped: Traversable, kind: str) -> Located:
    """The document of the built-in grid or sweep (``kind``) in the folder ``shipped``, or of the file at a path."""
    names = file_names(shipped)
    if source in names:
        text = (shipped / f"{source}.yaml").read_text(encoding="utf-8")
        return read_located(text, source, source, kind)
    path = Path(source)
    if not _is_file(path):
        if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
            raise DataMissing(
                f"There is no {kind} file {source}.", f"check the path; `rd3 list {kind}s` lists the built-in ones"
            )
        raise UnknownName(f"There is no {kind} {source!r}.", did_you_mean(source, names))
    try:
        text = read_text(path)
    except OSError as error:
        raise GridErrors(source, [Problem("the file", f"Cannot be read ({error}).")], kind) from None
    document = read_located(text, path.stem, source, kind)
    keys = set(document.data) if isinstance(document.data, dict) else set()
    kinds = [kind for kind, own in _OWN_KEYS.items() if keys & own]
    if kinds and kind not in kinds:
        command = "run" if kinds == ["grid"] else "sweep"
        raise BadValue(f"{source} is a {kinds[0]}, not a {kind}.", f"use `rd3 {command} {source}`")
    return document


_OWN_KEYS = {"grid": {"datasets"}, "sweep": {"space", "trials"}}
"""Keys that a file of the other kind does not have."""
