"""Publishing of a grid in MLflow: its scores as the description of its run, tables and charts as artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rd3.cell import Cell
from rd3.component import changes_text
from rd3.errors import DataMissing
from rd3.recipe import Key, read_recipe
from rd3.store import Entry
from tracking.report.page import write_report
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import READING, escape_markdown, paper_text, top1_text
from tracking.runs.fields import Fact, Find, cell_facts, run_name
from tracking.runs.runs import Tracker, grid_tags, member_tag, quoted

FOLDER = "report"
"""Artifact folder of a grid's run."""
_LONGEST = 5000
"""Maximum characters of a description; MLflow allows 8000."""


def publish(
    tracker: Tracker, run_id: str, name: str, results: Results, files: Mapping[str, Path], runs: Sequence[Any] = ()
) -> None:
    """Log the report's files (by name) and a table of scores to the grid's run; tag its recipes' runs.

    ``runs``: those of the ledger, if they have been searched for.  The folder of the files is not logged as a whole: it
    is the user's choice, and may hold anything.  A recipe's run stays a child of the grid that created it; its tag
    ``rd3.grids`` lists all grids that use it.  Runs that an edited grid no longer uses lose its name, once all its
    cells have results: where a dataset is missing, their keys are not known.
    """
    described = summary(results.scores)
    facts = _facts(results)
    entries = (results.find("evaluation", key) for key in results.frame["evaluation"] if key is not None)
    used = facts.keys() | {key for entry in entries if entry is not None for key in entry.recipe.get("teachers", ())}
    complete = bool((results.frame["status"] != "missing").all())
    with tracker.errors():
        for file, path in files.items():
            tracker.client.log_artifact(run_id, str(path), PurePosixPath(FOLDER, file).parent.as_posix())
        tracker.log(run_id, tags={"mlflow.note.content": described})
        for run in runs or tracker.own_runs():
            key, kind = run.data.tags.get("rd3.key"), run.data.tags.get("rd3.kind")
            if "rd3.imported" in run.data.tags and key in facts:
                _name_imported(tracker, run, facts[key], results.find(kind, key))
            _tag_run(tracker, run, name, key in used, complete)


def publish_tables(
    tracker: Tracker,
    run_id: str,
    name: str,
    cells: Sequence[Cell],
    find: Find,
    out: Path,
    runs: Sequence[Any] = (),
    **facts: object,
) -> None:
    """Write the report without contact sheets, which would need the sets' files, and :func:`publish` it."""

    def not_fetched(kind: str, key: Key) -> Path:
        raise DataMissing(f"See the run of {kind} {key[:12]}.")

    results = Results.of(cells, find)
    files = write_report(name, results, not_fetched, out, facts=facts)
    publish(tracker, run_id, name, results, files, runs)


def _facts(results: Results) -> dict[Key, dict[str, Fact]]:
    """The grid's names for its evaluations, measurements of their students, sets and teachers, by key."""
    found: dict[Key, dict[str, Fact]] = {}
    for row in results.rows:
        of_evaluation = cell_facts(row)
        known = {"evaluation": of_evaluation, "robustness": of_evaluation, "set": cell_facts(row, of_set=True)}
        network = {"network": row["teacher_network"]} if row["teacher_network"] else {}
        known["teacher_key"] = {"dataset": row["dataset"], "teacher": row["teacher_role"], **network}
        for column, facts in known.items():
            if row[column] is not None:
                found.setdefault(row[column], facts)
    return found


def _name_imported(tracker: Tracker, run: Any, facts: Mapping[str, Fact], entry: Entry | None) -> None:
    """Give the run of an imported result the grid's names, which no import knows, if no grid has done so."""
    own = "protocol" if run.data.tags["rd3.kind"] in ("evaluation", "robustness") else "teacher"
    if own in run.data.params or own not in facts or entry is None:
        return
    missing = {name: str(value) for name, value in facts.items() if name not in run.data.params}
    tracker.log(run.info.run_id, parameters=missing)
    tracker.client.update_run(run.info.run_id, name=run_name(read_recipe(entry.recipe), facts))


def _tag_run(tracker: Tracker, run: Any, grid: str, is_used: bool, complete: bool) -> None:
    """Tag a run that the grid uses with its name, or remove that name if it used the run before it was edited."""
    named = run.data.tags.get("rd3.grids", "").split()
    is_tagged = member_tag(grid) in run.data.tags
    others = [one for one in named if one != grid]
    if is_used and not (grid in named and is_tagged):
        tracker.log(run.info.run_id, tags=grid_tags([*others, grid]))
    elif is_tagged and not is_used and complete:
        tracker.client.delete_tag(run.info.run_id, member_tag(grid))
        tracker.log(run.info.run_id, tags={"rd3.grids": " ".join(others)})


def shared_view(tracker: Tracker, run_id: str, grid: str) -> str:
    """Keep a view of a grid's evaluations, best first, in its experiment; returns its path in the MLflow UI."""
    with tracker.errors():
        experiment_id = tracker.client.get_run(run_id).info.experiment_id
    tags = {member_tag(grid): "yes", "rd3.kind": "evaluation", "rd3.ledger": tracker.place.artifacts}
    parameters = ("method", "ipc", "changed", "student", "student_seed")
    view = {
        "searchFilter": " and ".join(f"tags.`{tag}` = {quoted(value)}" for tag, value in tags.items()),
        "orderByKey": "metrics.`top1_pct`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": ["metrics.`top1_pct`", *(f"params.`{name}`" for name in parameters)],
    }
    return tracker.share_view(experiment_id, f"rd3-{grid}", view)


_COLUMNS = ("method", "dataset", "IPC", "student", "protocol", "labels", "setting", "changed", "top-1 %", "paper %")


def summary(found: Sequence[Score]) -> str:
    """All scores of a grid as a Markdown table."""
    lines = [
        f"Top-1 after the last epoch: {READING}. Charts and all columns: artifacts, `report/`.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    size = sum(len(line) + 1 for line in lines)
    for place, score in enumerate(found):
        changed = changes_text({**score.overrides, **score.varied})
        cells = (score.method, score.dataset, score.ipc, score.student, score.protocol, score.labels, score.setting)
        texts = [escape_markdown(str(text)) for text in (*cells, changed, top1_text(score), paper_text(score.paper))]
        line = f"| {' | '.join(texts)} |"
        size += len(line) + 1
        if size > _LONGEST:
            lines += ["", f"{len(found) - place} more in `report/results.csv`."]
            break
        lines.append(line)
    return "\n".join(lines)
