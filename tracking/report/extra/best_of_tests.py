"""The best of several tests during training, which many publications report, beside the last epoch."""

from __future__ import annotations

from rd3.stats import mean
from tracking.report.blocks import setting_and_method
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.query import tests_by_epoch
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import differences, points_text

_COLUMNS = ("dataset", "IPC", "method", "evaluation", "tests", "last epoch", "best of the tests", "best − last")
_NOTE = (
    "A diagnostic, never the headline: the best is chosen on the test images themselves, and rises with the number of "
    "tests. Means over the evaluations that were tested before their last epoch, which is one of the tests."
)


@register_table("best-of-tests")
def best_of_tests(results: Results) -> Table | None:
    """The best test during training beside the last epoch, a diagnostic; for protocols with test_epochs."""
    evaluations = differences(
        [(score.student, score.teacher, score.protocol, f"{score.labels} labels") for score in results.scores]
    )
    found = zip(results.scores, evaluations, strict=True)
    rows = [row for score, evaluation in found if (row := _row(score, results, evaluation))]
    return Table("Best of several tests, a diagnostic", _COLUMNS, rows, _NOTE).without_empty() if rows else None


def _row(score: Score, results: Results, evaluation: str) -> list[Cell] | None:
    """None for a score without several tests; ``evaluation``: what tells it from the others."""
    entries = [results.find("evaluation", key) for key in score.evaluations]
    tested = [tests for entry in entries if entry is not None and len(tests := tests_by_epoch(entry.result)) > 1]
    if not tested:
        return None
    last, best = mean([tests[-1][1] for tests in tested]), mean([max(top1 for _, top1 in tests) for tests in tested])
    setting, method = setting_and_method(score)
    counts = sorted({len(tests) for tests in tested})
    return [
        *(score.dataset, score.ipc, method, ", ".join(filter(None, (evaluation, score.setting, setting.changed)))),
        *(" or ".join(map(str, counts)), f"{last:.1f}", f"{best:.1f}", points_text(best - last)),
    ]
