"""Runs of imported results beside those of the same results where they were computed."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_grid import session_in

from pipelines.settings import Session
from pipelines.transfer.results import import_results
from rd3.cell import Cell
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation, Recipe, RobustnessRecipe, SetRecipe
from rd3.store import Entry, FolderStore, sha256_files
from tracking.ledger.ledger import Ledger
from tracking.report.publish import publish_tables
from tracking.runs.fields import cell_facts, input_set, note, parent_facts
from tracking.runs.runs import Tracker

COMMON = {"data": Data(name="digits", fingerprint="f" * 64), "classes": "c" * 64, "resolution": 32}
SET = SetRecipe(**COMMON, method="random", version=1, settings={}, ipc=1, set_seed=0)
EVALUATION = EvaluationRecipe(
    **COMMON,
    set=SET.key,
    teachers=("7" * 64,),
    protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"temperature": 4.0}),
    student="resnet18",
    student_seed=3,
    normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
MEASURED = RobustnessRecipe.of(EVALUATION, [])
CELL = Cell(
    method="random", dataset="digits", ipc=1, teacher="mine", student="resnet18", protocol="rd3", labels="soft",
    varied={"temperature": 4.0}, set_seed=0, student_seed=3, set=SET.key, evaluation=EVALUATION.key,
    robustness=MEASURED.key,
)  # fmt: skip
RESULTS: dict[str, dict[str, Any]] = {
    "set": {"count": 10, "generation_wall_s": 2.0, "generation_process_s": 1.5},
    "evaluation": {"top1_pct": 41.25, "correct": 140, "tested": 340, "wall_s": 60.5, "ran_precision": "fp32",
                   "tested_on": "test", "image_steps": 400},
    "robustness": {"correct": 140, "tested": 340, "ece_pct": 3.0, "wall_s": 2.0},
}  # fmt: skip
FINISHED = "2026-11-20T10:00:00+00:00"


@pytest.fixture
def homes(tmp_path: Path, empty_database: Path) -> tuple[Session, Session]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_database, tmp_path / name)
    return session_in(tmp_path / "here"), session_in(tmp_path / "there")


def entry_in(folder: Path, recipe: Recipe) -> Entry:
    folder.mkdir()
    (folder / "files.json").write_text(recipe.key)
    if recipe.kind == "evaluation":
        points = [{"epoch": epoch, "loss": 1.0 / epoch, "lr": 0.001, "train_top1_pct": 10.0} for epoch in (1, 2, 3)]
        pq.write_table(pa.Table.from_pylist(points), folder / "curve.parquet")
    made = {"finished_at": FINISHED, "device": "a processor", "host": "elsewhere"}
    plain = recipe.model_dump(mode="json")
    content = "5" * 64 if recipe.kind == "set" else None
    result = RESULTS[recipe.kind]
    files = sha256_files(folder)
    return Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result=result, files=files, made=made, content=content)


def published(session: Session) -> dict[str, Any]:
    """The runs of a home after its grid's report, by kind."""
    tracker, ledger = Tracker(session), Ledger(session.artifacts)
    experiment = tracker.experiment("rd3")
    grid = tracker.find_grid("rd3", "study") or tracker.grid_run(experiment, "study", grid_yaml="")
    publish_tables(tracker, grid, "study", [CELL], ledger.find, session.home / "report")
    runs = {run.data.tags["rd3.kind"]: run for run in tracker.search([experiment], {"rd3.ledger": session.artifacts})}
    return {kind: (tracker, run) for kind, run in runs.items()}


def computed(session: Session, tmp_path: Path, store: FolderStore) -> None:
    """Both results as a grid's trials track them, and in a store folder."""
    here = session.with_identity(lease="a lease", work="grid study")
    tracker, ledger = Tracker(here), Ledger(here.artifacts)
    experiment = tracker.experiment("rd3")
    grid = tracker.grid_run(experiment, "study", grid_yaml="")
    for recipe in (SET, EVALUATION):
        folder = tmp_path / recipe.kind
        entry = entry_in(folder, recipe)
        facts = parent_facts(recipe, ledger.find) | cell_facts(dict(CELL), of_set=recipe is SET)
        run = tracker.begin(recipe, facts, experiment_id=experiment, parent_run_id=grid)
        described = note(recipe, ledger.find)
        ledger.add(run.finish(entry, folder, input_set=input_set(recipe, ledger.find), note=described))
        store.put(entry.sealed(), folder)


@pytest.mark.parametrize("kind", ["set", "evaluation"])
def test_an_imported_run_shows_what_a_computed_one_does(homes, tmp_path: Path, kind: str) -> None:
    here, there = homes
    store = FolderStore(tmp_path / "store")
    computed(here, tmp_path, store)
    import_results(store.root, there)
    (tracker, made), (other, imported) = (published(session)[kind] for session in (here, there))
    assert imported.info.run_name == made.info.run_name
    assert imported.info.status == made.info.status == "FINISHED"
    assert imported.data.params == made.data.params
    assert imported.data.metrics == made.data.metrics
    sides = ((tracker, made), (other, imported))
    histories = [client.client.get_metric_history(run.info.run_id, "loss") for client, run in sides]
    before, after = ([(point.step, point.value) for point in history] for history in histories)
    assert before == after == ([(1, 1.0), (2, 0.5), (3, 1 / 3)] if kind == "evaluation" else [])
    files = [{one.path for one in client.client.list_artifacts(run.info.run_id)} for client, run in sides]
    assert files[0] == files[1] == {"entry.json", kind}
    inputs = [[(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs] for run in (made, imported)]
    assert inputs[0] == inputs[1] and bool(inputs[0]) == (kind == "evaluation")

    tags, own = made.data.tags, imported.data.tags
    assert set(own) == set(tags) - {"rd3.lease", "mlflow.parentRunId"} | {"rd3.imported"}
    differ = {"rd3.ledger", "rd3.ledger_id", "mlflow.source.name", "mlflow.note.content"}
    assert {name for name in set(own) & set(tags) if own[name] != tags[name]} == differ
    assert own["rd3.imported"] == str(store.root) and own["mlflow.source.name"] == "import-results store"
    assert own["mlflow.note.content"].startswith(
        f"Imported from {store.root}; computed at {FINISHED} on a processor, elsewhere.\n"
    )
    ended = round(1000 * datetime.fromisoformat(FINISHED).timestamp())
    taken = RESULTS[kind].get("wall_s", RESULTS[kind].get("generation_wall_s"))
    assert (imported.info.start_time, imported.info.end_time) == (ended - 1000 * taken, ended)


def test_an_imported_measurement_has_the_names_of_its_evaluation(homes, tmp_path: Path) -> None:
    _here, there = homes
    store = FolderStore(tmp_path / "store")
    for recipe in (SET, EVALUATION, MEASURED):
        store.put(entry_in(tmp_path / recipe.kind, recipe), tmp_path / recipe.kind)
    import_results(store.root, there)
    runs = published(there)
    names = {kind: run.info.run_name for kind, (_tracker, run) in runs.items() if kind in ("evaluation", "robustness")}
    assert names["robustness"] == f"{names['evaluation']} robustness"
    params = runs["robustness"][1].data.params
    assert (params["protocol"], params["changed"]) == ("rd3", "temperature=4.0")
    assert params["evaluation"] == EVALUATION.key[:12]
    assert runs["robustness"][1].data.tags["rd3.in.study"] == "yes"


def test_names_of_a_computed_run_stay_when_another_grid_reports_it(homes, tmp_path: Path) -> None:
    here, _there = homes
    computed(here, tmp_path, FolderStore(tmp_path / "store"))
    _tracker, before = published(here)["evaluation"]
    tracker, ledger = Tracker(here), Ledger(here.artifacts)
    renamed = CELL.model_copy(
        update={"protocol": "other", "varied": {}, "overrides": {"temperature": 4.0, "zeta": 1.0}}
    )
    grid = tracker.grid_run(tracker.experiment("rd3"), "again", grid_yaml="")
    publish_tables(tracker, grid, "again", [renamed], ledger.find, here.home / "report")
    after = tracker.client.get_run(before.info.run_id)
    assert (after.info.run_name, after.data.params) == (before.info.run_name, before.data.params)
    assert after.data.tags["rd3.grids"] == "study again"
