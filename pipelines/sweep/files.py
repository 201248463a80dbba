"""Sweep files, read by name (built-in sweeps are in ``sweeps/``) or by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pipelines.grid.catalog import Catalog
from pipelines.grid.files import checked, file_names, read_named
from pipelines.sweep.check import check_sweep
from pipelines.sweep.values import Sweep

_SWEEPS = files("pipelines") / "sweeps"


def shipped_sweeps() -> list[str]:
    """Names of the built-in sweeps."""
    return file_names(_SWEEPS)


def load_sweep(source: str | Path, catalog: Catalog | None = None) -> Sweep:
    """Load a sweep by name or path; raises :class:`GridErrors` with all mistakes in the file."""
    return checked(check_sweep, read_named(str(source), _SWEEPS, "sweep"), catalog)
