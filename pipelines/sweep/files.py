"""Sweep files, read by name (built-in sweeps are in ``sweeps/``) or by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pipelines.grid.catalog import Catalog
from pipelines.grid.files import checked, file_names, read_named
from pipelines.grid.located_yaml import read_located
from pipelines.sweep.check import check_sweep
from pipelines.sweep.values import Sweep

_SWEEPS = files("pipelines") / "sweeps"


def shipped_sweeps() -> list[str]:
    """Names of the built-in sweeps."""
    return file_names(_SWEEPS)


def load_sweep(source: str | Path, catalog: Catalog | None = None) -> Sweep:
    """Load a sweep, as :func:`pipelines.grid.files.load_grid` loads a grid."""
    return checked(check_sweep, read_named(str(source), _SWEEPS, "sweep"), catalog)


def parse_sweep(text: str, name: str, catalog: Catalog | None = None) -> Sweep:
    """Parse the YAML text of a sweep, as :func:`load_sweep` does; ``name`` is used if the text has none."""
    return checked(check_sweep, read_located(text, name, kind="sweep"), catalog)
