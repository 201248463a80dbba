"""Accuracy by labels, with their bytes and the images that students see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tracking.report.blocks import method_text
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.results import Results
from tracking.report.scores import Score

_COLUMNS = ("dataset", "IPC", "method", "student", "labels", "label bytes", "image-steps", "top-1 %")


@register_table("label-budget")
def label_budget(results: Results) -> Table | None:
    """Accuracy, label bytes and image-steps by labels; for grids with stored labels."""
    if not any(score.label_bytes for score in results.scores):
        return None
    # A point that two parts of a grid share is listed once.
    distinct = {score.evaluations: score for score in results.scores if score.resolved}
    done = sorted(distinct.values(), key=_order)
    return Table("Accuracy by label bytes and image-steps", _COLUMNS, [_row(score) for score in done])


def _order(score: Score) -> tuple[object, ...]:
    """Within a set size, first equal compute, then bytes; labels from teachers in training come last."""
    stated = math.inf if score.label_bytes is None else score.label_bytes
    return score.dataset, score.ipc, score.image_steps or 0, stated, labels_text(score.resolved or {}), score.method


def _row(score: Score) -> list[Cell]:
    resolved = score.resolved or {}
    budget = (score.label_bytes, score.image_steps)
    return [score.dataset, score.ipc, method_text(score), score.student, labels_text(resolved), *budget, score]


def labels_text(resolved: Mapping[str, Any]) -> str:
    """The labels of a resolved protocol, such as ``stored (fp16, 4 of 40 epochs, 3 largest logits)``."""
    if resolved["labels"] == "hard":
        return "hard"
    regime = resolved.get("soft_labels", "online")
    if regime == "online":
        return "on the fly"
    if regime == "own":
        return "the set's own"
    pruned, largest = resolved.get("label_epochs"), resolved.get("label_top_k")
    details = [resolved["label_dtype"]]
    details += [f"{pruned} of {resolved['epochs']} epochs"] if pruned else []
    details += [f"{largest} largest logits"] if largest else []
    return f"{regime} ({', '.join(details)})"
