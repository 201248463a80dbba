"""The report of a grid: Markdown, CSV and a self-contained HTML page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from rd3.component import changes_text, flat_protocol, plain_text
from rd3.csv_file import csv_text
from rd3.store import now
from tracking.report import figures, tables
from tracking.report.charts import Drawing, drawings
from tracking.report.claims import Judged, judged
from tracking.report.extra._base import Table, extra_tables
from tracking.report.files import write_files
from tracking.report.latex import latex_of_results, latex_of_texts
from tracking.report.pairs import Pair, evaluation_texts, interval_text, pairs
from tracking.report.provenance import Provenance
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.sheets import Fetch, Sheet, contact_sheets
from tracking.report.tables import ResultTable
from tracking.runs.garbage import without_collection


def slug(title: str) -> str:
    """A title as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


@dataclass(frozen=True)
class Section:
    """One result table with its chart."""

    table: ResultTable
    chart: Drawing | None
    full_data: str
    """The accuracy with all training images, in a sentence; empty if no teacher is known."""


@dataclass(frozen=True)
class Page:
    """The data that the templates render."""

    grid: str
    description: str
    lines: dict[str, str]
    """Facts about the run, by name."""
    protocols: dict[str, dict[str, str]]
    """Map of protocol names to their fields."""
    teachers: list[dict[str, str]]
    sections: list[Section]
    sensitivity: list[Drawing]
    varied: list[Score]
    pairs: list[Pair]
    cost: Drawing | None
    others: list[Drawing]
    """Charts of :mod:`tracking.report.charts`, and those that the caller has drawn."""
    sheets: list[Sheet]
    undone: list[dict[str, str]]
    """``cell``, ``why`` and ``count`` (of seeds) of what has no result."""
    provenance: Provenance
    claim: Judged | None
    extra: dict[str, Table]
    """Tables of :mod:`tracking.report.extra`, by name."""

    @property
    def charts(self) -> list[Drawing]:
        drawn = (*(one.chart for one in self.sections), *self.sensitivity, self.cost, *self.others)
        return [chart for chart in drawn if chart and chart.svg]


def when(moment: str) -> str:
    """An ISO 8601 time in readable form."""
    return moment.replace("T", " ").replace("+00:00", " UTC")


def _distinct(frame: pd.DataFrame, column: str) -> list[str]:
    """Distinct values of a column as text, in order of appearance."""
    return [str(value) for value in dict.fromkeys(frame[column].tolist()) if value is not None]


_LISTED = {
    **{"datasets": "dataset", "methods": "method", "IPC": "ipc", "students": "student", "set seeds": "set_seed"},
    **{"student seeds": "student_seed", "evaluations": "status", "hardware": "device", "hosts": "host"},
    **{"tested on": "tested_on", "finished": "finished_at", "code version": "code_version", "torch": "torch"},
}
"""Facts about a run, and the columns whose distinct values they list."""


def _lines(results: Results, facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts about the run, from the entries and from the caller."""
    frame = results.frame
    given = {name: str(value) for name, value in facts.items() if name not in ("description", "claim", "failures")}
    counts = frame["status"].value_counts()
    dates = sorted(_distinct(frame, "finished_at"))
    threads = _distinct(frame, "threads")
    entries = {name: ", ".join(_distinct(frame, column)) for name, column in _LISTED.items()}
    entries["evaluations"] = ", ".join(f"{count} {status}" for status, count in counts.items())
    entries["hardware"] += f", {'/'.join(threads)} thread(s) a trial" if threads else ""
    entries["finished"] = " to ".join(dict.fromkeys([when(dates[0]), when(dates[-1])])) if dates else ""
    lines = {**entries, **given, "imported sets": _imported_sets(results)}
    return {name: value for name, value in lines.items() if value}


def _imported_sets(results: Results) -> str:
    """The rows whose sets RD3 did not generate, with the files that they come from."""
    sources = [
        f"{score.method}: {key[:12]} ({entry.made.get('source', 'source not recorded')})"
        for score in results.scores
        for key in score.sets
        if (entry := results.find("set", key)) is not None and entry.recipe.get("content")
    ]
    return "; ".join(dict.fromkeys(sources))


def _protocols(found: Sequence[Score]) -> dict[str, dict[str, str]]:
    """The resolved fields of each base protocol; a field that depends on the cell (a capped batch) lists its values."""
    merged: dict[str, dict[str, dict[str, None]]] = {}
    for score in found:
        if score.resolved and not score.varied:
            fields = merged.setdefault(f"{score.protocol}, {score.labels} labels", {})
            for name, value in _fields_in_use(score.resolved).items():
                fields.setdefault(name, {})[plain_text(value)] = None
    return {title: {name: ", ".join(values) for name, values in fields.items()} for title, fields in merged.items()}


def _fields_in_use(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a resolved protocol, without those of stored labels where none are stored."""
    stored = resolved.get("soft_labels", "online") in ("once", "stored")
    fields = {name: value for name, value in flat_protocol(resolved).items() if value is not None}
    return {name: value for name, value in fields.items() if stored or not name.startswith("label_")}


def _teachers(results: Results) -> list[dict[str, str]]:
    """The teachers of the labels, with hard labels those of the sets, in order of appearance."""
    named: dict[tuple[str, str, str], None] = {}
    for row in [row for row in results.rows if row["teacher_key"] is not None]:
        entry = results.find("evaluation", row["evaluation"])
        keys = entry.recipe.get("teachers") if entry is not None else None
        roles = row["overrides"].get("label_teachers") if keys else None
        pairs = zip(roles or [row["teacher_role"]], keys or [row["teacher_key"]], strict=False)
        named |= dict.fromkeys((row["dataset"], role, key) for role, key in pairs)
    found = []
    for dataset, role, key in named:
        entry = results.find("teacher", key)
        if entry is None:
            continue
        accuracy = entry.result.get("top1_pct", entry.result.get("test_top1_pct"))
        seen = " of the validation images" if entry.result.get("tested_on") == "validation" else ""
        found.append(
            {
                "dataset": dataset,
                "role": role,
                "network": str(entry.recipe.get("network", "")),
                "accuracy": "unknown" if accuracy is None else f"{accuracy:.2f} %{seen}",
                "origin": "imported" if entry.recipe.get("weights") else "trained here",
                "key": key[:12],
            }
        )
    return found


def _full_data(table: ResultTable, teachers: Sequence[Mapping[str, str]]) -> str:
    """The upper bound of a table: its student's network trained on all images, which the label teacher is or is not."""
    known = [each for each in teachers if (each["dataset"], each["role"]) == (table.dataset, table.teacher)]
    same = next((each for each in known if each["network"] == table.student), None)
    if same is not None:
        return f"{table.student} trained on all training images: {same['accuracy']} (teacher {same['role']})."
    others = ", ".join(f"a {each['network']} with {each['accuracy']}" for each in known)
    return f"{table.student} trained on all training images: unknown; the teacher is {others}." if known else ""


_MOST_PANELS = 24
"""Panels of all accuracy charts of a page; each takes a quarter of a second to draw."""


def _sections(found: Sequence[ResultTable], teachers: Sequence[Mapping[str, str]]) -> list[Section]:
    sections: list[Section] = []
    panels = 0
    for index, table in enumerate(found):
        chart = None
        if any(score.top1 for row in table.rows for score in row.scores.values()):
            panels += len(table.ipcs)
            drawn, caption = b"", f"Not drawn: with it, the accuracy charts would have more than {_MOST_PANELS} panels."
            if panels <= _MOST_PANELS or index == 0:
                drawn = figures.accuracy_chart(table, name=f"accuracy{index}")
                caption = f"Dots: mean over seeds; {figures.BARS}"
            chart = Drawing(f"Accuracy, {table.title}", caption, drawn)
        sections.append(Section(table, chart, _full_data(table, teachers)))
    return sections


def _sensitivity(found: Sequence[Score]) -> list[Drawing]:
    charts = []
    for index, field in enumerate(dict.fromkeys(name for score in found for name in score.varied)):
        if lines := figures.sensitivity_lines(found, field):
            drawn = figures.sensitivity_chart(lines, field, name=f"sensitivity{index}")
            caption = f"Only {field} moves, from the ringed base point; {figures.BARS}"
            charts.append(Drawing(f"Sensitivity to {field}", caption, drawn))
    return charts


def _cost(found: Sequence[Score]) -> Drawing | None:
    """Accuracy against cost, if there are at least two points that differ in method and IPC alone."""
    shown = [score for score in found if score.top1 and score.generation_s and not score.varied]
    drawable = [score for score in shown if score.labels == shown[0].labels]
    settings = {
        (score.dataset, score.teacher, score.student, score.protocol, changes_text(score.overrides), score.setting)
        for score in drawable
    }
    if len(drawable) < 2 or len(settings) > 1:
        return None
    drawn = figures.cost_chart(drawable, name="cost")
    units = " and ".join(dict.fromkeys(score.generation_unit for score in drawable))
    caption = (
        f"Time in the method ({units}), without training teachers, against accuracy on the set. Seconds on a GPU are "
        "wall time; times of different devices have panels of their own. Grey: Pareto front of a panel."
        if units != "CPU seconds"
        else "CPU seconds in the method, without training teachers, against accuracy on the set. Grey: Pareto front."
    )
    return Drawing("Generation time and accuracy", caption, drawn)


def _undone(results: Results, failures: Mapping[str, str]) -> list[dict[str, str]]:
    """Cells without a result, with the reason; ``failures`` maps keys of recipes to the reasons of their failures."""
    found = Counter[tuple[str, str]]()
    for row in [row for row in results.rows if row["status"] != "done"]:
        changed = changes_text({**row["overrides"], **row["varied"]})
        texts = (row["method"], row["dataset"], f"IPC {row['ipc']}", row["student"], row["protocol"])
        name = ", ".join(filter(None, (*texts, f"{row['labels']} labels", row["setting"], changed)))
        why = failures.get(row["evaluation"]) or failures.get(row["set"]) or row["reason"] or "not run yet"
        found[name, f"{row['status']}: {why}"] += 1
    return [{"cell": name, "why": why, "count": str(count)} for (name, why), count in found.items()]


def _evaluations_csv(frame: pd.DataFrame) -> str:
    """One line per evaluation with all columns; nested fields as JSON."""
    rows = frame.itertuples(index=False, name=None)
    plain = ([json.dumps(value) if isinstance(value, dict) else value for value in row] for row in rows)
    return csv_text([frame.columns, *plain])


def fill(template: str, page: Any) -> str:
    """Render a template of this package with the variables ``page`` and ``made_at``."""
    environment = Environment(
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=PackageLoader("tracking.report"),
    )
    environment.globals |= {
        "tables": tables,
        "is_score": lambda cell: isinstance(cell, Score),
        "changes_text": changes_text,
        "evaluation_texts": evaluation_texts,
        "interval_text": interval_text,
    }
    environment.filters["cell"] = tables.escape_markdown
    return environment.get_template(template).render(page=page, made_at=when(now()))


def _tables(page: Page) -> dict[str, str]:
    """Files of ``tables/``: LaTeX of every table, CSV of those that results.csv does not contain."""
    written = {
        f"tables/results-{place}-{slug(section.table.title)}.tex": latex_of_results(section.table)
        for place, section in enumerate(page.sections, 1)
    }
    claim = {"claim": page.claim.table} if page.claim else {}
    for name, table in (claim | page.extra).items():
        written[f"tables/{name}.csv"] = csv_text([table.columns, *table.texts])
        written[f"tables/{name}.tex"] = latex_of_texts(table.title, table.columns, table.texts, table.note)
    return written


@without_collection()
def write_report(
    grid_name: str,
    results: Results,
    fetch: Fetch,
    out: Path,
    *,
    facts: Mapping[str, Any],
    charts: Iterable[Drawing] = (),
) -> dict[str, Path]:
    """Write ``report.md``, ``report.html``, ``results.csv``, ``evaluations.csv``, ``charts/*.svg`` and ``tables/*``.

    Returns file names with their paths.  Charts and tables of an earlier report in this folder that this one does not
    have are removed, unless they were changed.  ``fetch`` is a method of a store.  ``facts`` are more lines about
    the run, by name; three names are special: ``description``, ``claim``, an :class:`rd3.claims.Claim` or None, and
    ``failures``, a map of recipe keys to reasons.
    ``charts`` are more charts than those of :mod:`tracking.report.charts`.
    """
    frame, found = results.frame, results.scores
    teachers = _teachers(results)
    page = Page(
        grid=grid_name,
        description=str(facts.get("description", "")),
        lines=_lines(results, facts),
        protocols=_protocols(found),
        teachers=teachers,
        sections=_sections(results.tables, teachers),
        sensitivity=_sensitivity(found),
        varied=[score for score in found if score.varied],
        pairs=pairs(frame),
        cost=_cost(found),
        others=[*drawings(results, fetch), *charts],
        sheets=contact_sheets(found, results.find, fetch),
        undone=_undone(results, facts.get("failures", {})),
        provenance=Provenance(results),
        claim=judged(facts["claim"], results) if facts.get("claim") else None,
        extra=extra_tables(results),
    )
    written: dict[str, str | bytes] = {
        "report.md": fill("report.md.j2", page),
        "results.csv": tables.to_csv(found, results.tables),
        "evaluations.csv": _evaluations_csv(frame),
        "report.html": fill("report.html.j2", page),
        **{f"charts/{place}-{slug(chart.title)}.svg": chart.svg for place, chart in enumerate(page.charts, 1)},
        **_tables(page),
    }
    return write_files(out, written, "report")
