"""A cell: one point of a grid, with the keys of what answers it.  Plain data, shared by planning and reporting."""

from __future__ import annotations

from typing import Any

from rd3.recipe import Key
from rd3.values import Frozen


class Cell(Frozen):
    """One evaluation of a grid: a method's set, a student, a protocol and both seeds.

    Cells that differ only in ``set_seed`` and ``student_seed`` are repeats of one number.
    """

    method: str
    dataset: str
    ipc: int
    teacher: str
    """Role of the teacher that made the set and gives soft labels."""
    teacher_network: str | None = None
    """Its architecture; None where neither the set nor the labels are any teacher's."""
    student: str
    protocol: str
    """Name of the preset."""
    labels: str
    """``soft`` or ``hard``."""
    varied: dict[str, Any] = {}
    """The protocol field that a sensitivity study moved, with its value; empty at the base point."""
    overrides: dict[str, Any] = {}
    """Settings and protocol fields that the grid itself changed from the presets."""
    set_seed: int | None
    student_seed: int
    set: Key | None
    """None, like ``evaluation``, where the pair is unsupported; then ``reason`` says why."""
    evaluation: Key | None
    reduced: dict[str, tuple[float, float]] = {}
    """Field to (made, published) for everything done less than published: no paper delta for such a cell."""
    reason: str = ""
