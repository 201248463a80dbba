"""A cell: one point of a grid, with the keys of its recipes.  Plain data, shared by planning and reporting."""

from __future__ import annotations

from typing import Any

from rd3.recipe import Key
from rd3.values import Frozen


class Cell(Frozen):
    """One evaluation of a grid: a method's set, a student, a protocol and both seeds.

    Cells that differ only in ``set_seed`` and ``student_seed`` are repetitions of one experiment.
    """

    method: str
    dataset: str
    ipc: int
    teacher: str
    """Role of the teacher that the set is distilled from; it gives soft labels unless ``overrides`` names others."""
    teacher_network: str | None = None
    """Architecture of the teacher; None if neither the set nor the labels use a teacher."""
    student: str
    """Architecture of the student."""
    protocol: str
    """Name of the preset."""
    labels: str
    """``soft`` or ``hard``."""
    setting: str = ""
    """Name of the part of the grid that it belongs to, such as ``+ batch size``; empty if it has none."""
    printed: dict[str, str] = {}
    """Where the paper prints its accuracy: number of the table to the beginning of a ``config`` in
    ``paper_results.csv``; or empty."""
    varied: dict[str, Any] = {}
    """The protocol field that a sensitivity study varies, with its value; empty at the base point."""
    overrides: dict[str, Any] = {}
    """Settings and protocol fields that the grid overrides, and its ``label_teachers``."""
    set_seed: int | None
    student_seed: int
    set: Key | None
    """None, like ``evaluation``, if the combination is unsupported; ``reason`` then states why."""
    evaluation: Key | None
    robustness: Key | None = None
    """The measurement of its student's robustness, if the grid asks for one."""
    reduced: dict[str, tuple[float, float]] = {}
    """Field to (run, published) for every reduced setting; such a cell has no difference to the paper."""
    reason: str = ""
