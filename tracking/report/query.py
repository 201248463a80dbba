"""The evaluations of a grid as a data frame, from which all tables, figures and reports are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from rd3.cell import Cell
from tracking.runs.fields import Find


def own_settings(method: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a cell that are settings of its method; their names are ``METHOD.SETTING``."""
    return {name: value for name, value in overrides.items() if name.startswith(f"{method}.")}


def split_overrides(method: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A cell's ``overrides`` as settings of its method, and what remains: changes of the evaluation."""
    own = own_settings(method, overrides)
    return own, {name: value for name, value in overrides.items() if name not in own}


FIGURES = ("top1_pct", "correct", "tested", "wall_s", "process_s", "peak_mib", "image_steps", "label_bytes")
GENERATION = ("generation_wall_s", "generation_process_s", "preparation_wall_s", "preparation_process_s")
PROVENANCE = ("code_version", "device", "threads", "torch", "host", "finished_at", "pack", "cached_logits")
COLUMNS = (
    *Cell.model_fields,
    "status",
    *FIGURES,
    *GENERATION,
    "set_count",
    "set_peak_mib",
    "generation_gpu",
    "teacher_role",
    "teacher_key",
    "resolved",
    "tested_on",
    "ran_precision",
    *PROVENANCE,
)
"""``resolved`` is the evaluation's protocol, field by field; ``tested_on`` is ``test`` or ``validation``;
``ran_precision`` is ``bf16`` or ``fp32``; ``wall_s`` is elapsed and ``process_s`` CPU time, in seconds, and
``image_steps`` the number of images that the student was trained on.

``generation_*``, ``set_count`` and ``set_peak_mib`` belong to its set; ``preparation_*`` is the part of the generation
time that parents of the set other than teachers took; ``generation_gpu`` is the name of the GPU that made the set, or
empty for a processor.  ``teacher_role``, ``teacher_key`` and ``teacher_network`` belong to the first teacher that gives
soft labels, with hard labels to the set's.  ``pack`` is the number of evaluations trained together, whose times are
then those of the whole pack; empty for a single one.  ``cached_logits`` is ``read`` for an evaluation that read its
teachers' logits from a file: its time is not comparable with that of one that ran the teachers."""


_GPU_NAMES = ("NVIDIA", "Tesla", "GeForce", "Quadro", "AMD Instinct", "AMD Radeon")
"""How the names of GPUs begin in entries of earlier versions, which do not state the type of their device."""


def _gpu(made: Mapping[str, Any]) -> str:
    """Name of the GPU that made a result, or empty for a processor."""
    name = str(made.get("device", ""))
    of_gpu = made["device_type"] == "cuda" if "device_type" in made else name.startswith(_GPU_NAMES)
    return name if of_gpu else ""


def _results(cell: Cell, find: Find) -> dict[str, Any]:
    """Columns of a cell that come from ledger entries; those without a value are left out."""
    if cell.evaluation is None:
        return {"status": "unsupported"}
    entry = find("evaluation", cell.evaluation)
    of_set = find("set", cell.set) if cell.set else None
    columns: dict[str, Any] = {"status": "missing" if entry is None else "done"}
    if of_set is not None:
        columns |= {name: of_set.result.get(name) for name in GENERATION}
        columns |= {"set_count": of_set.result.get("count"), "set_peak_mib": of_set.result.get("peak_mib")}
        columns["generation_gpu"] = _gpu(of_set.made)
    taught = next((each for each in (entry, of_set) if each is not None and each.recipe.get("teachers")), None)
    if taught is not None:
        of_labels = cell.overrides.get("label_teachers", ()) if taught is entry else ()
        columns["teacher_role"] = next(iter(of_labels), cell.teacher)
        columns["teacher_key"] = taught.recipe["teachers"][0]
        teacher = find("teacher", columns["teacher_key"])
        if teacher is not None:
            columns["teacher_network"] = teacher.recipe.get("network")
    if entry is not None:
        columns |= {name: entry.result.get(name) for name in FIGURES}
        columns |= {name: entry.made.get(name) for name in PROVENANCE}
        columns |= {"resolved": entry.recipe.get("protocol"), "tested_on": entry.recipe.get("tested_on")}
        columns["ran_precision"] = entry.result.get("ran_precision")
    return columns


_DIAGNOSTIC = re.compile(r"diagnostic_top1_pct_epoch_(\d+)")


def tests_by_epoch(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(epoch, top-1 accuracy in per cent) of an evaluation's test epochs and of its last epoch, in order."""
    found = {float(match[1]): result[name] for name in result if (match := _DIAGNOSTIC.fullmatch(name))}
    if "epochs_run" in result:
        found[result["epochs_run"]] = result["top1_pct"]
    return sorted(found.items())


def rows(cells: Sequence[Cell], find: Find) -> pd.DataFrame:
    """A data frame with one row per evaluation, in the order of ``cells``, and the columns of :data:`COLUMNS`.

    ``status`` is ``done``, ``missing`` (not run yet, or failed) or ``unsupported`` (``reason`` says why).
    """
    known = cache(find)
    blank = dict.fromkeys(COLUMNS)
    return pd.DataFrame(
        [blank | cell.model_dump() | _results(cell, known) for cell in cells], columns=list(COLUMNS), dtype=object
    )
