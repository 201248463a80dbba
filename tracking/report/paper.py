"""The paper's own numbers, for whoever sets a measurement beside them.

The tables are data (``data/paper_results.csv``, one row a number, as printed), and so are the names that the paper
uses (``data/paper_names.yaml``) and the printed cells that should not be trusted (``data/paper_doubts.yaml``).
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from rd3.component import changes_text


@dataclass(frozen=True)
class PaperValue:
    """One printed accuracy.  The paper does not say over how many runs."""

    mean: float
    """Top-1, 0-100."""
    std: float | None
    table: str
    """Number of the paper's table."""
    remark: str = ""
    """Why the cell is doubtful; empty where it is not."""


@functools.cache
def names() -> dict[str, Any]:
    """The paper's names and the order of its tables."""
    text = files("tracking.report").joinpath("data", "paper_names.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@functools.cache
def doubts() -> tuple[dict[str, Any], ...]:
    """Printed cells that should not be trusted, with the reason."""
    return tuple(
        yaml.safe_load(files("tracking.report").joinpath("data", "paper_doubts.yaml").read_text(encoding="utf-8"))
    )


@functools.cache
def _printed() -> dict[tuple[str, str, int, str, str, str], tuple[float, float | None]]:
    """(table, dataset, ipc, method, network, labels) to (mean, std), for the tables that cells are compared with."""
    wanted = {table for tables in names()["tables"].values() for table in tables}
    found: dict[tuple[str, str, int, str, str, str], tuple[float, float | None]] = {}
    with files("tracking.report").joinpath("data", "paper_results.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["table"] in wanted and row["metric"] == "top1":
                labels = "hard" if row["config"].startswith("label=hard") else "soft"
                place = (row["table"], row["dataset"], int(row["ipc"]), row["method"], row["model"], labels)
                found[place] = (float(row["mean"]), float(row["std"]) if row["std"] else None)
    return found


def remark(table: str, dataset: str, ipc: int, method: str, model: str) -> str:
    """Why a printed cell is doubtful, all names as the paper has them; empty where it is not."""
    said = [
        doubt["remark"]
        for doubt in doubts()
        if doubt["table"] == table
        and doubt.get("dataset", dataset) == dataset
        and ipc in doubt.get("ipc", [ipc])
        and method in doubt.get("method", [method])
        and model in doubt.get("model", [model])
    ]
    return "; ".join(said)


def paper_value(
    method: str, dataset: str, ipc: int, student: str, teacher_network: str | None, labels: str
) -> PaperValue | None:
    """What the paper prints for a cell under its own protocol, or None.

    Names are RD3's.  Subsets and digits have no value, nor has any teacher but ResNet-18; ``teacher_network`` is None
    for a random set with hard labels, which no teacher touched.
    """
    known = names()
    theirs = known["methods"].get(method), known["datasets"].get(dataset), known["networks"].get(student)
    untouched = method == "random" and labels == "hard" and teacher_network is None
    if None in theirs or not (untouched or teacher_network == known["teacher"]):
        return None
    name, data, model = theirs
    for table in known["tables"][labels]:
        printed = _printed().get((table, data, ipc, name, model, labels))
        if printed is not None:
            return PaperValue(*printed, table, remark(table, data, ipc, name, model))
    return None


def incomparable(protocol: str, changed: dict[str, Any], labels: str) -> list[str]:
    """What sets a cell apart from the paper's protocol: the preset, or fields that the grid changed; [] if nothing."""
    known = names()
    allowed = {*known["open"], "labels", *(["loss"] if labels == "hard" else [])}
    apart = [f"protocol {protocol}"] if protocol != known["protocol"] else []
    return apart + [changes_text({field: value}) for field, value in changed.items() if field not in allowed]


def place_of(kind: str, name: str) -> tuple[int, str]:
    """Sort key of a method or dataset (``kind`` is ``methods`` or ``datasets``): the paper's order, then by name."""
    order = list(names()[kind])
    return (order.index(name) if name in order else len(order), name)
