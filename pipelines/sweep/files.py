"""Sweep files: read whole and refused whole, by name (those that ship lie in ``sweeps/``) or by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from pipelines.grid import file_names, read_named
from pipelines.grid_parts import InfoOf, UserRole, no_user_role
from pipelines.places import GridErrors, read_located
from pipelines.sweep.check import check_sweep
from pipelines.sweep.values import Sweep
from rd3.datasets import dataset_info
from rd3.protocol import PresetOf, preset


def _folder() -> Any:
    return files("pipelines").joinpath("sweeps")


def shipped_sweeps() -> list[str]:
    """Names of the sweeps that ship with RD3."""
    return file_names(_folder())


def load_sweep(
    source: str | Path,
    *,
    info_of: InfoOf = dataset_info,
    user_role: UserRole = no_user_role,
    preset_of: PresetOf = preset,
) -> Sweep:
    """The sweep of that name or at that path; raises :class:`GridErrors` with every mistake of the file."""
    name, text = read_named(source, _folder(), "sweep")
    return parse_sweep(text, name, info_of, user_role, preset_of)


def parse_sweep(
    text: str,
    name: str,
    info_of: InfoOf = dataset_info,
    user_role: UserRole = no_user_role,
    preset_of: PresetOf = preset,
) -> Sweep:
    """The sweep that a YAML text describes; ``name`` is used where the text gives none."""
    document = read_located(text)
    unreadable = bool(document.problems) and document.data is None
    sweep = None if unreadable else check_sweep(document, name, text, info_of, user_role, preset_of)
    if sweep is None or document.problems:
        raise GridErrors(name, sorted(document.problems, key=lambda problem: problem.line or 0), "Sweep")
    return sweep
