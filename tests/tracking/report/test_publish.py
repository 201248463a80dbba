"""A grid's run in a real MLflow store: its table, its files, and its name on every run that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rd3.cell import Cell
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation, SetRecipe
from rd3.store import Entry
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.report.publish import publish_tables, shared_view, summary
from tracking.report.query import rows
from tracking.report.scores import scores
from tracking.report.tables import result_tables, to_csv
from tracking.runs.runs import Tracker

COMMON = {"data": Data(name="digits", fingerprint="f" * 64), "classes": "c" * 64, "resolution": 32}


def an_evaluation(temperature: float, seed: int) -> tuple[EvaluationRecipe, Cell]:
    made = SetRecipe(**COMMON, method="random", version=1, settings={}, ipc=1, set_seed=0)
    varied = {"temperature": temperature} if temperature != 20.0 else {}
    recipe = EvaluationRecipe(
        **COMMON,
        set=made.key,
        teachers=("7" * 64,),
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=varied),
        student="resnet18",
        student_seed=seed,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    own = {"method": "random", "dataset": "digits", "ipc": 1, "teacher": "mine", "student": "resnet18"}
    own |= {"protocol": "rd3", "labels": "soft", "varied": varied, "set_seed": 0, "student_seed": seed}
    return recipe, Cell(**own, set=made.key, evaluation=recipe.key)


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(Place(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), tmp_path))


def test_a_grid_shows_its_numbers_and_names_its_runs(tracker: Tracker, tmp_path: Path) -> None:
    ledger = Ledger(tracker.place.artifacts)
    experiment_id = tracker.experiment("rd3")
    assert tracker.find_grid("rd3", "study") is None
    grids = {name: tracker.grid_run(experiment_id, name, grid_yaml="") for name in ("first", "study")}
    assert tracker.find_grid("rd3", "study") == grids["study"]
    assert tracker.find_grid("elsewhere", "study") is None
    cells, run_of = [], {}
    for temperature, seed, top1 in ((20.0, 0, 40.0), (20.0, 1, 42.0), (4.0, 0, 30.5), (4.0, 1, 31.5)):
        recipe, cell = an_evaluation(temperature, seed)
        cells.append(cell)
        facts = {"method": "random", "ipc": 1}
        run = tracker.begin(recipe, facts, experiment_id=experiment_id, parent_run_id=grids["first"])
        tracker.client.set_terminated(run.run_id)
        run_of[recipe.key] = run.run_id
        result = {"top1_pct": top1, "correct": 1, "tested": 10}
        ledger.add(Entry(kind="evaluation", key=recipe.key, recipe=recipe.model_dump(mode="json"), result=result))

    publish_tables(tracker, grids["first"], "first", cells[:2], ledger.find, tmp_path / "first")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / ".env").write_text("PASSWORD=secret")  # the folder is the user's choice
    for _twice in range(2):
        publish_tables(tracker, grids["study"], "study", cells, ledger.find, tmp_path / "study", description="why")
    said = {key: tracker.client.get_run(run).data.tags["rd3.grids"] for key, run in run_of.items()}
    assert list(said.values()) == ["first study", "first study", "study", "study"]
    path = shared_view(tracker, grids["study"], "study")
    assert path == f"/#/experiments/{experiment_id}/runs?viewStateShareKey=rd3-study"
    view = json.loads(tracker.client.get_experiment(experiment_id).tags["mlflow.sharedViewState.rd3-study"])
    shown = tracker.client.search_runs([experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} DESC"])
    assert {run.info.run_id for run in shown} == set(run_of.values())
    shown = tracker.client.get_run(grids["study"]).data.tags["mlflow.note.content"]
    assert "| random | digits | 1 | resnet18 | rd3 | soft |  |  | 41.0 (2 seeds) |" in shown
    assert "| random | digits | 1 | resnet18 | rd3 | soft |  | temperature=4.0 | 31.0 (2 seeds) |" in shown
    files = Path(tracker.client.get_run(grids["study"]).info.artifact_uri.removeprefix("file://")) / "report"
    found = scores(rows(cells, ledger.find))
    assert (files / "results.csv").read_text() == to_csv(found, result_tables(found))
    assert {path.name for path in (files / "charts").iterdir()} == {
        "1-accuracy-digits-soft-labels-student-resnet18.svg",
        "2-sensitivity-to-temperature.svg",
    }
    assert "why" in (files / "report.html").read_text()
    assert not (files / ".env").exists()

    unknown = cells[0].model_copy(update={"evaluation": "0" * 64})  # as without the dataset
    publish_tables(tracker, grids["study"], "study", [unknown, cells[1]], ledger.find, tmp_path / "elsewhere")
    assert [tracker.client.get_run(run).data.tags["rd3.grids"] for run in run_of.values()] == list(said.values())
    publish_tables(tracker, grids["study"], "study", cells[1:3], ledger.find, tmp_path / "edited")
    said = {key: tracker.client.get_run(run).data.tags["rd3.grids"] for key, run in run_of.items()}
    assert list(said.values()) == ["first", "first study", "study", ""]
    shown = tracker.client.search_runs([experiment_id], view["searchFilter"])
    assert {run.info.run_id for run in shown} == set(list(run_of.values())[1:3])


def test_runs_have_the_name_of_the_grid_that_started_them_from_the_beginning(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, experiment_id = Ledger(tracker.place.artifacts), tracker.experiment("rd3")
    grid = tracker.grid_run(experiment_id, "study", grid_yaml="")
    cells, tags = [], {}
    for seed, started_by in ((0, "study"), (1, "")):
        recipe, cell = an_evaluation(20.0, seed)
        run = tracker.begin(recipe, {}, experiment_id=experiment_id, parent_run_id=grid, grid=started_by)
        tracker.client.set_terminated(run.run_id)
        tags[run.run_id] = tracker.client.get_run(run.run_id).data.tags
        result = {"top1_pct": 50.0, "correct": 5, "tested": 10}
        ledger.add(Entry(kind="evaluation", key=recipe.key, recipe=recipe.model_dump(mode="json"), result=result))
        cells.append(cell)
    ours, other = tags
    assert tags[ours]["rd3.grids"] == "study" and "rd3.grids" not in tags[other]

    logged, log = [], tracker.log
    monkeypatch.setattr(tracker, "log", lambda run_id, **what: logged.append(run_id) or log(run_id, **what))
    publish_tables(tracker, grid, "study", cells, ledger.find, tmp_path / "study")
    assert sorted(logged) == sorted([grid, other]), "no request for a run that has the name"
    for run_id in tags:
        shown = tracker.client.get_run(run_id).data.tags
        assert {name: shown[name] for name in ("rd3.grids", "rd3.in.study")} == {
            "rd3.grids": "study",
            "rd3.in.study": "yes",
        }


def test_a_long_summary_says_what_it_leaves_out() -> None:
    cells = [an_evaluation(float(temperature), 0)[1] for temperature in range(1, 101)]
    text = summary(scores(rows(cells, lambda _kind, _key: None)))
    lines = text.splitlines()
    assert len(text) < 5100
    shown = sum(line.startswith("| random") for line in lines)
    assert lines[-1] == f"{100 - shown} more in `report/results.csv`."
    assert 10 < shown < 100
