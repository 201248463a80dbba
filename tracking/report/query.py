"""What the ledger knows of a grid, as one table of evaluations: the start of every table, figure and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pandas as pd

from rd3.cell import Cell
from rd3.store import Entry

Find = Callable[[str, str], Entry | None]
"""(kind, key) to the ledger's entry, or None."""

FIGURES = ("top1_pct", "correct", "tested", "wall_s", "process_s", "peak_mib")
GENERATION = ("generation_wall_s", "generation_process_s")
MADE = ("code_version", "device", "threads", "torch", "host", "finished_at", "pack")
COLUMNS = (
    *Cell.model_fields,
    "status",
    *FIGURES,
    *GENERATION,
    "set_peak_mib",
    "teacher_key",
    "resolved",
    "tested_on",
    "ran_precision",
    *MADE,
)
"""``resolved`` is the evaluation's protocol, field by field; ``tested_on`` is ``test`` or ``validation``;
``ran_precision`` is ``bf16`` or ``fp32``; ``generation_*`` and ``set_peak_mib`` are of its set. ``pack``: how many
evaluations were trained together, whose times are then those of all; empty where it was one."""


def _answers(cell: Cell, find: Find) -> dict[str, Any]:
    """What the entries of one cell say; absent figures are left out."""
    if cell.evaluation is None:
        return {"status": "unsupported"}
    entry = find("evaluation", cell.evaluation)
    made = find("set", cell.set) if cell.set else None
    said: dict[str, Any] = {"status": "missing" if entry is None else "done"}
    if made is not None:
        said |= {name: made.result.get(name) for name in GENERATION}
        said["set_peak_mib"] = made.result.get("peak_mib")
    # The label teacher first; with hard labels the one that made the set.
    teachers = [key for parent in (entry, made) if parent is not None for key in parent.recipe.get("teachers", ())]
    if teachers:
        teacher = find("teacher", teachers[0])
        said["teacher_key"] = teachers[0]
        if teacher is not None:
            said["teacher_network"] = teacher.recipe.get("network")
    if entry is not None:
        said |= {name: entry.result.get(name) for name in FIGURES}
        said |= {name: entry.made.get(name) for name in MADE}
        said |= {"resolved": entry.recipe.get("protocol"), "tested_on": entry.recipe.get("tested_on")}
        said["ran_precision"] = entry.result.get("ran_precision")
    return said


def rows(cells: Sequence[Cell], find: Find) -> pd.DataFrame:
    """One row an evaluation, in the order of ``cells``, with the columns of :data:`COLUMNS`.

    ``status`` is ``done``, ``missing`` (no entry yet, or it failed) or ``unsupported`` (``reason`` says why).
    """
    known = cache(find)
    blank = dict.fromkeys(COLUMNS)
    return pd.DataFrame(
        [blank | cell.model_dump() | _answers(cell, known) for cell in cells], columns=list(COLUMNS), dtype=object
    )
