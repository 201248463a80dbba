"""Origin of every cell of a report: the keys, seeds, precision and MLflow runs of its evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rd3.component import changes_text
from tracking.report.results import Results
from tracking.report.scores import Score, point_of
from tracking.report.tables import seconds_text
from tracking.runs.fields import Find


@dataclass(frozen=True)
class Origin:
    """The evaluations of one score, and the id of their rows in the page."""

    anchor: str
    rows: list[dict[str, str]]


class Provenance:
    """Origins of all scores of a grid, in their order."""

    def __init__(self, results: Results):
        points = (point_of(vars(score)) for score in results.scores)
        self.origins = {point: Origin(f"point-{number}", []) for number, point in enumerate(points, 1)}
        for row in results.rows:
            self.origins[point_of(row)].rows.append(_texts(row, results.find))

    @property
    def count(self) -> int:
        """Number of evaluations."""
        return sum(len(origin.rows) for origin in self.origins.values())

    def anchor(self, score: Score) -> str:
        """Id of the score's rows."""
        return self.origins[point_of(vars(score))].anchor


def _texts(row: dict[str, Any], find: Find) -> dict[str, str]:
    entry = find("evaluation", row["evaluation"]) if row["evaluation"] else None
    return {
        **{name: str(row[name]) for name in ("method", "dataset", "ipc", "student", "protocol", "labels")},
        "changed": changes_text({**row["overrides"], **row["varied"]}),
        "seeds": f"{'–' if row['set_seed'] is None else row['set_seed']} / {row['student_seed']}",
        "correct": "" if row["correct"] is None else f"{row['correct']} of {row['tested']}",
        "top1": row["status"] if row["top1_pct"] is None else f"{row['top1_pct']:.2f}",
        "precision": row["ran_precision"] or "",
        "device": row["device"] or "",
        "wall": seconds_text(row["wall_s"]) + _circumstances(row["pack"], row["cached_logits"]),
        "run": (entry.run_id if entry is not None else None) or "",
        **{name: (row[column] or "")[:12] for name, column in KEYS.items()},
    }


KEYS = {"set": "set", "evaluation": "evaluation", "teacher": "teacher_key"}
"""Keys that a row shows, and the columns of the frame that they come from."""


def _circumstances(pack: float | None, cached_logits: str | None) -> str:
    """Suffix for the time of an evaluation that was trained in a pack, or with cached teacher logits."""
    found = [f"pack of {pack:.0f}"] if pack is not None and pack > 1 else []
    found += ["cached teacher logits"] if cached_logits == "read" else []
    return f" ({', '.join(found)})" if found else ""
