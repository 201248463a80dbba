"""Accuracy of every method under the named settings of a grid, one row per setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.paper import place_of
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import paper_text, top1_text

Place = tuple[str, int, str]
"""Dataset, IPC and student."""


@register_table("settings")
def settings(results: Results) -> Table | None:
    """Accuracy of every method under the named settings of a grid, with the paper's; for grids that name them."""
    named = [score for score in results.scores if score.setting and not score.varied]
    if not named:
        return None
    order = {name: place for place, name in enumerate(dict.fromkeys(results.frame["setting"]))}
    methods = list(dict.fromkeys(_method(score) for score in named))
    rows: dict[tuple[Place, str], dict[str, Score]] = {}
    for score in sorted(named, key=lambda score: order[score.setting]):
        rows.setdefault((_place(score), score.setting), {})[_method(score)] = score
    lines: list[list[Cell]] = [
        [*map(str, place), name, *(_cell(scores.get(method)) for method in methods)]
        for (place, name), scores in sorted(rows.items(), key=lambda row: _position(row[0][0]))
    ]
    columns = ["dataset", "IPC", "student", "setting", *methods]
    return Table("Accuracy under each setting", columns, lines, " ".join(_repeated(rows)))


def _place(score: Score) -> Place:
    return score.dataset, score.ipc, score.student


def _position(place: Place) -> tuple[object, ...]:
    return (*place_of("datasets", place[0]), place[1], place[2])


def _method(score: Score) -> str:
    """The method with its own settings, which other rows may have without them."""
    own = {name: value for name, value in score.overrides.items() if name.startswith(f"{score.method}.")}
    changed = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in own.items())
    return f"{score.method} ({changed})" if changed else score.method


def _cell(score: Score | None) -> str | None:
    if score is None:
        return None
    return "; ".join([top1_text(score), *([f"paper {paper_text(score)}"] if score.paper else [])])


def _repeated(rows: Mapping[tuple[Place, str], Mapping[str, Score]]) -> list[str]:
    """Rows whose evaluations are those of an earlier row, which ran once."""
    first: dict[tuple[str, ...], str] = {}
    found: dict[str, str] = {}
    for (_place, name), scores in rows.items():
        keys = _evaluations(scores.values())
        if keys and first.setdefault(keys, name) != name:
            found[name] = first[keys]
    return [f"{name}: the same evaluations as {earlier} at this size, run once." for name, earlier in found.items()]


def _evaluations(scores: Iterable[Score]) -> tuple[str, ...]:
    return tuple(key for score in scores for key in score.evaluations)
