"""Accuracy of every method under the named settings of a grid, one row per setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from rd3.component import changes_text
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.paper import paper_order
from tracking.report.query import own_settings, split_overrides
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import paper_text, reduced_text, top1_text

_ALWAYS = ("dataset", "ipc", "student", "setting")


class Row(NamedTuple):
    """What the scores of a row share."""

    dataset: str
    ipc: int
    student: str
    protocol: str
    teacher: str
    labels: str
    setting: str
    changed: str
    """Changed fields of the evaluation; empty where the other fields tell the row from all others."""


@register_table("settings")
def settings(results: Results) -> Table | None:
    """Accuracy of every method under the named settings of a grid, with the paper's; for grids that name them."""
    named = [score for score in results.scores if score.setting and not score.varied]
    if not named:
        return None
    order = list(dict.fromkeys(results.frame["setting"]))
    methods = list(dict.fromkeys(_method(score) for score in named))
    found: dict[Row, dict[str, Score]] = {}  # by method
    for score in sorted(named, key=lambda score: order.index(score.setting)):
        changed = changes_text(split_overrides(score.method, score.overrides)[1])
        row = Row._make([*(getattr(score, name) for name in Row._fields if name != "changed"), changed])
        found.setdefault(row, {})[_method(score)] = score
    # What was changed is shown only where it tells rows apart.
    variants = Counter(row[:-1] for row in found)
    rows = {row if variants[row[:-1]] > 1 else row._replace(changed=""): scores for row, scores in found.items()}
    fields = [name for name in Row._fields if name in _ALWAYS or len({getattr(row, name) for row in rows}) > 1]
    lines: list[list[Cell]] = [
        [*(str(getattr(row, name)) for name in fields), *(_cell(scores.get(method)) for method in methods)]
        for row, scores in sorted(rows.items(), key=lambda item: _position(item[0]))
    ]
    columns = [*fields, *methods]
    return Table("Accuracy under each setting", columns, lines, " ".join([*_repeated(rows), *_unsupported(rows)]))


def _position(row: Row) -> tuple[object, ...]:
    return (*paper_order("datasets", row.dataset), row.ipc, row.student)


def _method(score: Score) -> str:
    """The method with its own settings, which other rows may have without them."""
    own = own_settings(score.method, score.overrides)
    changed = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in own.items())
    return f"{score.method} ({changed})" if changed else score.method


def _cell(score: Score | None) -> str | None:
    """The result, what was reduced, and the value that the paper prints for this setting.

    Without a ``printed`` table that is the value under the paper's own protocol, shown only if nothing differs from it.
    """
    if score is None:
        return None
    paper = score.paper is not None and (score.printed or not score.not_comparable)
    texts = (top1_text(score), reduced_text(score.reduced), f"paper {paper_text(score.paper)}" if paper else "")
    return "; ".join(filter(None, texts))


def _repeated(rows: Mapping[Row, Mapping[str, Score]]) -> list[str]:
    """Sentences about settings whose evaluations are the same as those of an earlier setting."""
    by_setting: dict[str, tuple[str, ...]] = {}
    for row, scores in rows.items():
        keys = tuple(key for score in scores.values() for key in score.keys)
        by_setting[row.setting] = by_setting.get(row.setting, ()) + keys
    first: dict[tuple[str, ...], str] = {}
    found = {name: first.setdefault(keys, name) for name, keys in by_setting.items() if keys}
    return [
        f"{name}: the same evaluations as {earlier} at this size, run once."
        for name, earlier in found.items()
        if earlier != name
    ]


def _unsupported(rows: Mapping[Row, Mapping[str, Score]]) -> list[str]:
    """A sentence for every setting that has unsupported cells, and each reason."""
    found = [
        f"{row.setting}: {score.unsupported}."
        for row, scores in rows.items()
        for score in scores.values()
        if score.unsupported
    ]
    return list(dict.fromkeys(found))
