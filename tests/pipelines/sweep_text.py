"""Sweeps as text."""

from __future__ import annotations

from pipelines.grid.catalog import Catalog
from pipelines.grid.files import checked
from pipelines.grid.located_yaml import read_located
from pipelines.sweep.check import check_sweep
from pipelines.sweep.values import Sweep


def parse_sweep(text: str, name: str, catalog: Catalog | None = None) -> Sweep:
    """The sweep in the text of a file; ``name`` is used if the text has none."""
    return checked(check_sweep, read_located(text, name, kind="sweep"), catalog)
