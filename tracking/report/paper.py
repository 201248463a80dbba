"""Results printed in the RD3 paper ("Rectified Decoupled Dataset Distillation"), for comparison with those of a grid.

A cell is one combination of method, dataset, IPC (images per class), student and labels.  Data files hold the tables
(``data/paper_results.csv``, one row per printed number), the names that the paper uses (``data/paper_names.yaml``) and
doubtful cells (``data/paper_doubts.yaml``).
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from rd3.component import changes_text


@dataclass(frozen=True)
class PaperValue:
    """One printed accuracy; the paper does not state the number of runs."""

    mean: float
    """Top-1 accuracy in per cent."""
    std: float | None
    """In points; None where the paper prints none."""
    table: str
    """Number of the paper's table."""
    remark: str = ""
    """Reason to doubt the cell, or empty."""


_DATA = files("tracking.report") / "data"


@functools.cache
def names() -> dict[str, Any]:
    """The paper's names and the order of its tables (``data/paper_names.yaml``)."""
    found: dict[str, Any] = yaml.safe_load((_DATA / "paper_names.yaml").read_text(encoding="utf-8"))
    return found


@functools.cache
def doubts() -> list[dict[str, Any]]:
    """Doubtful cells of the paper's tables, with the reason."""
    found: list[dict[str, Any]] = yaml.safe_load((_DATA / "paper_doubts.yaml").read_text(encoding="utf-8"))
    return found


@functools.cache
def _rows() -> list[dict[str, str]]:
    """The printed accuracies, with the columns of the CSV file."""
    with (_DATA / "paper_results.csv").open(encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["metric"] == "top1"]


def printed_tables() -> list[str]:
    """Numbers of the paper's tables that print accuracies."""
    return sorted({row["table"] for row in _rows()}, key=int)


def configurations(table: str, beginning: str) -> list[str]:
    """The configurations of one of the paper's tables (as in its column ``config``) that begin with this text."""
    named = (row["config"] for row in _rows() if row["table"] == table)
    return list(dict.fromkeys(config for config in named if config.startswith(beginning)))


def _value(
    table: str, method: str, dataset: str, ipc: int, student: str, fits: Callable[[str], bool]
) -> PaperValue | None:
    """The value of a cell (names are RD3's) in the first fitting configuration of a table, or None."""
    known = names()
    theirs = known["methods"].get(method), known["datasets"].get(dataset), known["networks"].get(student)
    for row in _rows() if None not in theirs else ():
        place = (row["table"], row["method"], row["dataset"], row["model"], row["ipc"])
        if place == (table, *theirs, str(ipc)) and fits(row["config"]):
            std = float(row["std"]) if row["std"] else None
            return PaperValue(float(row["mean"]), std, table, _remark(row))
    return None


def configured_value(
    method: str, dataset: str, ipc: int, student: str, teacher_network: str | None, printed: Mapping[str, str]
) -> PaperValue | None:
    """The paper's value for a cell in a given configuration, or None; names are RD3's.

    ``printed``: number of the table, and the beginning of the configuration in it.
    """
    if teacher_network not in (None, names()["teacher"]):
        return None
    [(table, config)] = printed.items()
    return _value(table, method, dataset, ipc, student, lambda named: named.startswith(config))


def _remark(row: Mapping[str, str]) -> str:
    """Reasons to doubt a printed cell, or empty."""
    ipc = int(row["ipc"])
    remarks = [
        doubt["remark"]
        for doubt in doubts()
        if doubt["table"] == row["table"]
        and doubt.get("dataset", row["dataset"]) == row["dataset"]
        and ipc in doubt.get("ipc", [ipc])
        and all(row[name] in doubt.get(name, [row[name]]) for name in ("method", "model"))
    ]
    return "; ".join(remarks)


def paper_value(
    method: str, dataset: str, ipc: int, student: str, teacher_network: str | None, labels: str
) -> PaperValue | None:
    """The paper's value for a cell under its own protocol, or None; names are RD3's.

    There are values for full datasets and ResNet-18 teachers only.  ``teacher_network`` is None for a random set with
    hard labels, which does not use a teacher.
    """
    known = names()
    without_teacher = labels == "hard" and teacher_network is None
    if not (without_teacher or teacher_network == known["teacher"]):
        return None

    def fits(config: str) -> bool:  # it has what a table varies besides its rows and columns, such as label=hard
        return config.startswith("label=hard") == (labels == "hard")

    found = (_value(table, method, dataset, ipc, student, fits) for table in known["tables"][labels])
    return next((value for value in found if value is not None), None)


def incomparable(
    method: str, protocol: str, changed: Mapping[str, Any], labels: str, printed: Mapping[str, str]
) -> list[str]:
    """Differences of a cell from the paper's evaluation: another protocol, and what the grid changed.

    Fields that the paper does not fix, such as the precision, may differ (``open`` in ``data/paper_names.yaml``).  In a
    configuration that the grid names (``printed``), only the method's own settings count, and what makes the
    configuration unlike any run (``unlike``).
    """
    known = names()
    apart = [f"protocol {protocol}"] if protocol != known["protocol"] else []
    apart += [
        one["reason"]
        for table, config in printed.items()
        for one in known["unlike"]
        if one["table"] == table and any(config.startswith(beginning) for beginning in one["configurations"])
    ]
    allowed = {*known["open"], "labels", *(["loss"] if labels == "hard" else [])}
    return apart + [
        changes_text({field: value})
        for field, value in changed.items()
        if (field.startswith(f"{method}.") if printed else field not in allowed)
    ]


def paper_order(kind: str, name: str) -> tuple[int, str]:
    """Sort key of a method or dataset (``kind``: ``methods`` or ``datasets``): the paper's order, then by name."""
    order = list(names()[kind])
    return (order.index(name) if name in order else len(order), name)
