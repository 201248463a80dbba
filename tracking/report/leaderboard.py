"""A leaderboard: the results of several grids on one static page, with the paper's numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rd3.component import changes_text
from rd3.store import write_atomically, write_errors
from tracking.report.page import fill
from tracking.report.paper import names, paper_order
from tracking.report.results import Results
from tracking.report.scores import VALIDATED, Score
from tracking.report.tables import paper_text, reduced_text, top1_text

VERIFIED, REPORTED = "verified", "reported"


@dataclass(frozen=True)
class Standing:
    """One number of the leaderboard."""

    dataset: str
    ipc: int
    method: str
    top1: float
    """Mean in per cent, by which rows are sorted."""
    shown: str
    status: str
    """``verified``: evaluated here; ``reported``: printed in the paper."""
    protocol: str
    """Its name, then what differs from it: the setting of the grid's part, changed fields, and whether it was tested on
    validation images."""
    labels: str
    student: str
    teacher: str
    reduced: str
    """Values below the published ones, as ``run/published``."""
    source: str
    """Name of the grid whose report shows its origin, or the paper's table for a reported number."""


@dataclass(frozen=True)
class Board:
    """The numbers of one dataset and IPC, best first."""

    title: str
    rows: list[Standing]


@dataclass(frozen=True)
class Published:
    """A grid on the leaderboard; its report, grid file and recipes are in a folder of its name."""

    description: str
    command: str
    """Runs the grid again, in that folder."""


def standings(found: Mapping[str, Results]) -> list[Standing]:
    """The finished points of grids by name, and each paper value beside them once; points of ``vary`` are left out."""
    scores = ((score, grid) for grid, results in found.items() for score in results.scores if not score.varied)
    return list(dict.fromkeys(row for score, grid in scores for row in _rows(score, grid)))


def _rows(score: Score, grid: str) -> Iterator[Standing]:
    """What was evaluated here, if it is finished, and what the paper prints."""
    cell: dict[str, Any] = {name: getattr(score, name) for name in ("dataset", "ipc", "method", "labels", "student")}
    # Of the reasons why a score cannot be compared with the paper's, this one belongs to the protocol.
    tested = [VALIDATED] if VALIDATED in score.not_comparable else []
    if score.top1 is not None:
        yield Standing(
            **cell,
            top1=score.top1.mean,
            shown=top1_text(score),
            status=VERIFIED,
            protocol=", ".join(filter(None, (score.protocol, score.setting, changes_text(score.overrides), *tested))),
            teacher=score.teacher,
            reduced=reduced_text(score.reduced),
            source=grid,
        )
    if score.paper is not None:
        # {table: configuration}, if the grid names one, otherwise the paper's own protocol.
        [config] = score.printed.values() or [names()["protocol"]]
        yield Standing(
            **cell,
            top1=score.paper.mean,
            shown=paper_text(score.paper),
            status=REPORTED,
            protocol=config,
            teacher=names()["teacher"],
            reduced="",
            source=f"paper, Table {score.paper.table}",
        )


def boards(rows: list[Standing]) -> list[Board]:
    """The numbers by dataset, in the paper's order, and IPC; best first."""
    ordered = sorted(rows, key=lambda row: (*paper_order("datasets", row.dataset), row.ipc, -row.top1))
    groups = groupby(ordered, key=lambda row: (row.dataset, row.ipc))
    return [Board(f"{dataset}, IPC {ipc}", list(group)) for (dataset, ipc), group in groups]


def write_leaderboard(found: Mapping[str, Results], grids: Mapping[str, Published], out: Path) -> Path:
    """Write ``index.html``, which links to ``NAME/report.html`` and ``NAME/grid.yaml`` of every grid; return its path.

    ``found``: the results of ``grids``, by name.
    """
    page = fill("leaderboard.html.j2", {"boards": boards(standings(found)), "grids": grids})
    with write_errors(out, "choose another folder (--out)", "the leaderboard"):
        write_atomically(out / "index.html", page)
    return out / "index.html"
