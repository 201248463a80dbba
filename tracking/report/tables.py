"""Result tables as Markdown and CSV: methods by IPC for one dataset and protocol, compared with the paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rd3.component import changes_text
from rd3.csv_file import csv_text
from rd3.errors import BadValue
from tracking.report.columns import Column
from tracking.report.paper import PaperValue
from tracking.report.query import split_overrides
from tracking.report.scores import Score, Summary, comparable_protocol

LEGEND = (
    "Bold: the highest mean of a column. Bold and {equal}: equal to it within noise, that is, not separated from it "
    "by a paired t-test over shared seeds after Holm's correction for all pairs of the column (p at least 0.05). "
    "Methods with fewer than three shared seeds, or with the same difference, not 0, on all of them, are not tested."
)
NO_INTERVAL = (
    "Difference: our mean minus the paper's, in points, without a confidence interval, because the paper does not "
    "state its number of runs."
)


@dataclass(frozen=True)
class Row:
    """Scores of one method with its settings, by IPC."""

    label: str
    scores: dict[int, Score]


@dataclass(frozen=True)
class ResultTable:
    """Scores of one dataset, protocol, teacher, student and kind of labels."""

    dataset: str
    protocol: str
    teacher: str
    student: str
    labels: str
    changed: str
    """Settings that the grid changed for all rows: of the protocol, and of the method where all rows share it."""
    ipcs: tuple[int, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """Footnotes in the order of their letters."""
    part: str
    """The grid's name (key ``setting``) for the part of it that the table shows."""
    mixed: bool
    """Whether the scores ran at different precisions, which footnotes then state."""
    columns: Mapping[int, Column]
    """The comparison of the methods at each IPC."""

    def standing(self, row: Row, ipc: int) -> str:
        """``best``, ``equal`` (to the best within noise) or empty."""
        return self.columns[ipc].standing(row.label)

    @property
    def legend(self) -> str:
        """What bold type and ``{equal}`` mean, or empty if no column has several results."""
        standings = {self.standing(row, ipc) for row in self.rows for ipc in row.scores}
        return LEGEND if "best" in standings else ""

    @property
    def title(self) -> str:
        part = f", {self.part}" if self.part else ""
        return f"{self.dataset}, {self.labels} labels, student {self.student}{part}"

    @property
    def setting(self) -> str:
        """Protocol, changed fields and teacher in one line."""
        changed = f" with {self.changed}" if self.changed else ""
        return f"protocol {self.protocol}{changed}, teacher {self.teacher}"

    def markers(self, score: Score) -> list[str]:
        """Letters of a score's footnotes, the markers beside its result."""
        return [letter(self.notes.index(note)) for note in notes_of(score, self.mixed)]


def letter(index: int) -> str:
    """Letters for footnotes: 0 is a, 25 is z, 26 is aa."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def notes_of(score: Score, mixed: bool) -> list[str]:
    """Footnotes of a score; ``mixed``: other scores of the table ran at another precision."""
    found = []
    if len(score.precisions) > 1:
        found.append(f"{score.method} at IPC {score.ipc}: repeats ran at {' and '.join(score.precisions)}")
    elif mixed and score.precisions:
        found.append(f"ran at {score.precisions[0]}")
    if score.unsupported:
        found.append(f"{score.method} at IPC {score.ipc}: {score.unsupported}")
    if score.status == "partial" and score.top1 is not None:
        found.append(f"{score.method} at IPC {score.ipc}: {score.top1.n} of {score.planned} repeats done")
    if score.paper is not None and score.paper.remark:
        found.append(f"the paper's Table {score.paper.table}: {score.paper.remark}")
    if score.paper is not None and score.not_comparable:
        found.append(f"not comparable with the paper ({', '.join(score.not_comparable)})")
    return found


def reduced_text(reduced: Mapping[str, tuple[float, float]]) -> str:
    """``epochs 40/400`` for every reduced field, from its values (run, published)."""
    return ", ".join(f"{name} {run:g}/{published:g}" for name, (run, published) in reduced.items())


def top1_text(score: Score) -> str:
    """``41.2 ± 0.3 [40.5, 41.9] (3)``, ``41.2 (2 seeds)``, ``41.2 (n=1)``, or the status if there is no result."""
    got = score.top1
    if got is None:
        return "–" if score.unsupported else "not done"
    return f"{got.mean:.1f}{spread_text(got)} ({count_text(got)})"


def spread_text(got: Summary, digits: int = 1) -> str:
    """Standard deviation and 95 % interval, or empty for fewer than three independent seeds."""
    if got.interval is None:
        return ""
    low, high = got.interval
    return f" ± {got.std:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def count_text(got: Summary) -> str:
    """Number of repeats, with the split of the standard deviation where there are several set seeds."""
    if got.n == 1:
        return "n=1"
    several_sets = got.std_sets is not None
    count = str(got.n) if got.interval else f"{got.n}, of 2 set seeds" if several_sets else f"{got.n} seeds"
    if not several_sets:
        return count
    return f"{count}; set seeds ± {got.std_sets:.1f}, student seeds ± {got.std_students:.1f}"


def paper_text(value: PaperValue | None) -> str:
    """A value that the paper prints, or an empty string."""
    if value is None:
        return ""
    return f"{value.mean:.1f}" + ("" if value.std is None else f" ± {value.std:.1f}")


def points_text(points: float | None) -> str:
    """A signed number of points, or an empty string."""
    return "" if points is None else f"{points:+.1f}".replace("-", "−")


def seconds_text(value: float | None) -> str:
    """Seconds to about three digits."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _check_columns(scores: Sequence[Score]) -> None:
    """Raise :class:`BadValue` if a column mixes protocols, because its rows would not be comparable."""
    columns: dict[tuple[str, int], list[Score]] = {}
    for score in scores:
        columns.setdefault((score.dataset, score.ipc), []).append(score)
    for (dataset, ipc), column in columns.items():
        listed = sorted({f"{score.protocol} ({score.labels} labels)" for score in column})
        fields = {comparable_protocol(score.resolved) for score in column if score.resolved}
        if len(listed) > 1 or len(fields) > 1:
            what = " and ".join(listed) if len(listed) > 1 else f"{listed[0]} with {len(fields)} sets of fields"
            raise BadValue(f"Column {dataset}, IPC {ipc} mixes protocols: {what}.", "make one table per protocol")


def result_table(scores: Sequence[Score]) -> ResultTable:
    """The table of scores that share dataset, protocol, teacher, student and labels, or :class:`BadValue`."""
    _check_columns(scores)
    first = scores[0]
    common = {
        name: value
        for name, value in first.overrides.items()
        if all(name in score.overrides and score.overrides[name] == value for score in scores)
    }
    rows: dict[str, dict[int, Score]] = {}
    for score in scores:
        own = changes_text({name: value for name, value in score.overrides.items() if name not in common})
        rows.setdefault(f"{score.method} ({own})" if own else score.method, {})[score.ipc] = score
    common.pop("labels", None)
    mixed = len({precision for score in scores for precision in score.precisions}) > 1
    ipcs = tuple(sorted({score.ipc for score in scores}))
    columns = {ipc: {label: by_ipc[ipc] for label, by_ipc in rows.items() if ipc in by_ipc} for ipc in ipcs}
    shared: dict[str, Any] = {
        name: getattr(first, name) for name in ("dataset", "protocol", "teacher", "student", "labels")
    }
    return ResultTable(
        **shared,
        part=first.setting,
        changed=changes_text(common),
        ipcs=ipcs,
        rows=tuple(Row(label, by_ipc) for label, by_ipc in rows.items()),
        notes=tuple(dict.fromkeys(note for score in scores for note in notes_of(score, mixed))),
        mixed=mixed,
        columns={ipc: Column.of(column) for ipc, column in columns.items()},
    )


def _table_key(score: Score) -> tuple[str, ...]:
    """Key of the table that a score belongs to."""
    _own, fields = split_overrides(score.method, score.overrides)
    shared = (score.dataset, score.protocol, score.teacher, score.student, score.labels, score.setting)
    # The paper's table and configuration that the grid names for comparison are of a table, too.
    return (*shared, json.dumps([fields, score.printed], sort_keys=True))


def result_tables(scores: Sequence[Score]) -> list[ResultTable]:
    """A table per dataset, protocol, teacher, student and kind of labels, without the points of sensitivity studies."""
    return _grouped([score for score in scores if not score.varied])


def varied_tables(scores: Sequence[Score]) -> dict[str, list[ResultTable]]:
    """The tables of the points of sensitivity studies, by the varied field with its value."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        if score.varied:
            groups.setdefault(changes_text(score.varied), []).append(score)
    return {varied: _grouped(group) for varied, group in groups.items()}


def _grouped(scores: Sequence[Score]) -> list[ResultTable]:
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        groups.setdefault(_table_key(score), []).append(score)
    return [result_table(group) for group in groups.values()]


def short_names(found: Sequence[ResultTable]) -> list[str]:
    """What tells tables of one grid apart, such as ``hard labels``; empty for a single one."""
    described = [
        (
            *(table.dataset, f"{table.labels} labels", f"student {table.student}", f"protocol {table.protocol}"),
            *(table.part, table.changed, f"teacher {table.teacher}"),
        )
        for table in found
    ]
    return differences(described)


def differences(described: Sequence[Sequence[str]]) -> list[str]:
    """What tells rows of texts apart: of each row, the texts at those places where the rows differ."""
    differ = [place for place, texts in enumerate(zip(*described, strict=True)) if len(set(texts)) > 1]
    return [", ".join(filter(None, (texts[place] for place in differ))) for texts in described]


def escape_markdown(text: str) -> str:
    """Escape text for a Markdown table cell; it cannot become a link or a picture."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return plain.replace("](", "]\\(")


READING = "mean ± standard deviation [95 % interval of the mean] (number of evaluations)"
HEADINGS = ("Method", "IPC", "Top-1 %", "Paper %", "Difference", "Reduced", "Generation s (wall)", "(CPU)")


def to_markdown(table: ResultTable) -> str:
    """The table with caption and footnotes, one line per method and IPC."""
    lines = [
        f"**{escape_markdown(table.title)}** ({escape_markdown(table.setting)}; {READING})",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|--:|---|---|--:|---|--:|--:|",
    ]
    for row in table.rows:
        for ipc, score in sorted(row.scores.items()):
            markers = "".join(f" [{marker}]" for marker in table.markers(score))
            result = _emphasised(top1_text(score), table.standing(row, ipc)) + markers
            compared = (paper_text(score.paper), points_text(score.delta), reduced_text(score.reduced))
            times = map(seconds_text, (score.generation_wall_s, score.generation_process_s))
            values = (row.label, str(ipc), result, *compared, *times)
            lines.append("| " + " | ".join(escape_markdown(value) for value in values) + " |")
    notes = [f"[{letter(index)}] {escape_markdown(note)}." for index, note in enumerate(table.notes)]
    if table.legend:
        notes.append(table.legend.format(equal="≈"))
    if any(score.delta is not None for row in table.rows for score in row.scores.values()):
        notes.append(NO_INTERVAL)
    return "\n".join([*lines, *(line for note in notes for line in ("", note))]) + "\n"


def _emphasised(text: str, standing: str) -> str:
    return f"**{text}** ≈" if standing == "equal" else f"**{text}**" if standing else text


CSV_COLUMNS = (
    *("method", "dataset", "ipc", "teacher", "student", "protocol", "labels", "varied", "overrides"),
    *("status", "reason", "planned", "n", "top1_pct_mean", "top1_pct_std", "std_set_seeds", "std_student_seeds"),
    *("half_95", "reduced", "paper_mean", "paper_std", "paper_table", "paper_remark", "difference", "not_comparable"),
    *("generation_wall_s", "generation_process_s", "sets", "evaluations"),
    *("units", "low_95", "high_95", "variance_set_seeds", "variance_student_seeds", "standing", "precisions"),
    *("image_steps", "label_bytes", "setting", "generation_gpus"),
)


def to_csv(scores: Sequence[Score], tables: Sequence[ResultTable]) -> str:
    """All scores, including those of sensitivity studies, one per line, to six decimals; ``tables``: their tables."""
    lines: list[Iterable[object]] = [CSV_COLUMNS]
    standing = {
        id(score): table.standing(row, ipc)
        for table in tables
        for row in table.rows
        for ipc, score in row.scores.items()
    }
    for score in scores:
        got, paper = score.top1, score.paper
        values = [
            *(score.method, score.dataset, score.ipc, score.teacher, score.student, score.protocol, score.labels),
            *(changes_text(score.varied), changes_text(score.overrides)),
            *(score.status, score.unsupported, score.planned),
            *((got.n, got.mean, got.std, got.std_sets, got.std_students, got.half_95) if got else (0, *[None] * 5)),
            reduced_text(score.reduced),
            *((paper.mean, paper.std, paper.table, paper.remark) if paper else [None] * 4),
            score.delta,
            ", ".join(score.not_comparable),
            *(score.generation_wall_s, score.generation_process_s),
            *(" ".join(score.sets), " ".join(score.evaluations)),
            *((got.units, got.low, got.high, *(got.components or (None, None))) if got else [None] * 5),
            *(standing.get(id(score), ""), " ".join(score.precisions)),
            *(score.image_steps, score.label_bytes, score.setting, ", ".join(filter(None, score.generation_gpus))),
        ]
        lines.append([round(value, 6) if isinstance(value, float) else value for value in values])
    return csv_text(lines)
