"""One MLflow run per recipe, on a real SQLite store: what it shows, and that a retry adds nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rd3.errors import DataMissing, StoreError, TrackingError
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation, SetRecipe
from rd3.store import Entry, sha256_files
from tracking.ledger.ledger import Ledger, former_name
from tracking.place import Place
from tracking.runs.fields import metrics
from tracking.runs.runs import Tracker
from tracking.store import TrackedStore
from tracking.upkeep.rebuild import rebuild

FACTS = {"method": "rded", "ipc": 1, "protocol": "rd3", "teacher": "resnet18"}
CURVE = [{"epoch": epoch, "loss": 1 / epoch, "lr": 0.1, "train_top1_pct": epoch / 10} for epoch in range(1, 301)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A fresh home, as it is on a machine that has never run anything."""
    home = tmp_path_factory.mktemp("it's a home") / "rd3"
    return Place(tracking_uri=f"sqlite:///{home}/mlflow.db", artifacts=str(home / "artifacts"), home=home)


@pytest.fixture(scope="module")
def tracker(place: Place) -> Tracker:
    return Tracker(place)


@pytest.fixture(scope="module")
def experiment_id(tracker: Tracker) -> str:
    return tracker.experiment("grid")


def a_set(seed: int = 0, **more: Any) -> SetRecipe:
    settings = {"crops": 5, "resolution": 80, "jpeg": None}
    data = Data(name="cifar10", fingerprint="f" * 64)
    own = {"method": "rded", "version": 1, "settings": settings, "data": data, "classes": "c" * 64, "resolution": 32}
    return SetRecipe(**(own | {"ipc": 1, "teachers": ("7" * 64,), "set_seed": seed} | more))


def an_evaluation(seed: int = 0) -> EvaluationRecipe:
    return EvaluationRecipe(
        set=a_set().key,
        teachers=("7" * 64,),
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10),
        student="resnet18",
        student_seed=seed,
        data=Data(name="cifar10", fingerprint="f" * 64),
        classes="c" * 64,
        resolution=32,
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    )


def result_of(recipe: Any, folder: Path, result: dict[str, Any]) -> Entry:
    """A finished result folder, and its entry as the maker hands it over."""
    (folder / "deep").mkdir(parents=True)
    (folder / "images.bin").write_bytes(recipe.key.encode())
    (folder / "deep" / "contact_sheet.png").write_bytes(b"png")
    plain = recipe.model_dump(mode="json")
    return Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result=result, files=sha256_files(folder))


def points(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in tracker.client.get_metric_history(run_id, name))


def test_experiments_keep_files_below_the_artifact_root(tracker: Tracker, experiment_id: str, place: Place) -> None:
    assert tracker.experiment("grid") == experiment_id
    found = tracker.client.get_experiment(experiment_id)
    assert found.artifact_location == (Path(place.artifacts) / "runs").as_uri()
    gone = tracker.experiment("gone")
    tracker.client.delete_experiment(gone)
    with pytest.raises(TrackingError, match=rf"'gone' was deleted in MLflow\. Fix: restore it.*{gone}"):
        tracker.experiment("gone")


def test_more_than_one_request_takes_is_logged_whole(tracker: Tracker, experiment_id: str) -> None:
    run_id = tracker.client.create_run(experiment_id).info.run_id
    rows = [("top1_pct", step / 10, step, step) for step in range(2500)]
    parameters = {f"p{number}": str(number) for number in range(130)}
    tracker.log(run_id, points=rows, parameters=parameters, tags={"note": "last"})
    assert points(tracker, run_id, "top1_pct") == [(step, value) for _name, value, _when, step in rows]
    data = tracker.client.get_run(run_id).data
    assert data.params == parameters and data.tags["note"] == "last"


def test_experiments_on_later_pages_count_too(place: Place) -> None:
    class Page(list):
        token: str | None = None

    def search_experiments(page_token: str | None = None) -> Page:
        number = int(page_token or 0)
        page = Page(SimpleNamespace(experiment_id=f"{number}.{place}") for place in range(2))
        page.token = str(number + 1) if number < 2 else None
        return page

    tracker = Tracker(place)
    tracker.__dict__["client"] = SimpleNamespace(search_experiments=search_experiments)
    assert tracker.experiment_ids() == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]


def test_only_finite_figures_become_metrics() -> None:
    assert metrics({"a": 1, "b": math.nan, "c": math.inf, "d": "x", "e": {"f": 0.5}, "g": [1]}) == {
        "a": 1.0,
        "e.f": 0.5,
    }


def test_the_run_of_a_set(tracker: Tracker, experiment_id: str, tmp_path: Path, place: Place) -> None:
    recipe = a_set(seed=1)
    figures = {"generation_wall_s": 2.5, "phases": {"select": {"wall_s": 1.5}}, "ok": True}
    entry = result_of(recipe, tmp_path / "out", figures)
    grid = tracker.grid_run(experiment_id, "demo", grid_yaml="methods: [rded]\n")
    run = tracker.begin(recipe, {"teacher": "resnet18"}, experiment_id=experiment_id, parent_run_id=grid)
    assert tracker.client.get_run(run.run_id).info.status == "RUNNING"
    kept = run.finish(entry, tmp_path / "out")

    shown = tracker.client.get_run(run.run_id)
    assert shown.info.status == "FINISHED"
    assert shown.info.run_name == "rded cifar10 ipc1 seed1 set"
    assert shown.data.tags["mlflow.parentRunId"] == grid
    assert shown.data.tags["rd3.key"] == recipe.key
    assert shown.data.metrics == {"generation_wall_s": 2.5, "phases.select.wall_s": 1.5}
    expected = {"method": "rded", "dataset": "cifar10", "ipc": "1", "teacher": "resnet18", "crops": "5"}
    assert expected.items() <= shown.data.params.items()
    assert (shown.data.params["resolution"], shown.data.params["settings.resolution"]) == ("32", "80")
    assert shown.data.params["teachers"] == "7" * 12
    assert "jpeg" not in shown.data.params
    assert (kept.run_id, kept.files, kept.result) == (run.run_id, entry.files, entry.result)
    folder = Path(place.artifacts) / "runs" / run.run_id / "artifacts"
    assert sha256_files(folder / "set") == entry.files
    assert kept.artifact == (folder / "set").as_uri()
    stored = kept.model_copy(update={"artifact": f"runs/{run.run_id}/artifacts/set"})
    assert Entry.model_validate_json((folder / "entry.json").read_text()) == stored
    assert tracker.grid_run(experiment_id, "demo", grid_yaml="methods: [sre2l]\n") == grid
    tracker.close_grid(grid, ok=False)
    assert tracker.client.get_run(grid).info.status == "FAILED"


def test_the_run_of_an_evaluation_and_its_retry(tracker: Tracker, experiment_id: str, tmp_path: Path) -> None:
    recipe = an_evaluation()
    run = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
    run.fail("diverged", "The loss is nan." * 1000)
    failed = tracker.client.get_run(run.run_id)
    assert (failed.info.status, failed.data.tags["rd3.status"]) == ("FAILED", "diverged")
    assert failed.data.tags["rd3.reason"].startswith("The loss is nan.")

    entry = result_of(recipe, tmp_path / "out", {"top1_pct": 37.25, "correct": 3725, "wall_s": 9.0})
    seen = {"name": "rded cifar10 ipc1", "digest": "d" * 64, "source": "file:///somewhere", "images": 10}
    again = tracker.begin(recipe, FACTS | {"protocol": "alias", "new": 1.5}, experiment_id=experiment_id, attempt=2)
    assert again.run_id == run.run_id
    again.finish(entry, tmp_path / "out", curve=CURVE, input_set=seen)
    before = {name: points(tracker, run.run_id, name) for name in ("top1_pct", "loss", "lr", "train_top1_pct")}
    third = tracker.begin(recipe, FACTS, experiment_id=experiment_id, attempt=2)
    third.finish(entry, tmp_path / "out", curve=CURVE, input_set=seen)
    assert {name: points(tracker, run.run_id, name) for name in before} == before

    shown = tracker.client.get_run(run.run_id)
    assert shown.info.status == "FINISHED"
    assert shown.info.run_name == "rded cifar10 ipc1 seed0 -> resnet18"
    assert (shown.data.tags["rd3.status"], shown.data.tags["rd3.attempt"]) == ("done", "2")
    assert "rd3.reason" not in shown.data.tags
    expected = {"zeta": "1.0", "batch_size": "10", "temperature": "20.0", "loss": "kl", "protocol": "rd3", "new": "1.5"}
    assert expected.items() <= shown.data.params.items()
    assert shown.data.metrics["top1_pct"] == 37.25
    loss = before["loss"]
    assert len(loss) == 100
    assert (loss[0], loss[-1]) == ((1, 1.0), (300, 1 / 300))
    assert loss[40] == (round(40 * 299 / 99) + 1, 1 / (round(40 * 299 / 99) + 1))
    (given,) = shown.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("rded cifar10 ipc1", "d" * 32)
    assert json.loads(given.dataset.source) == {"uri": "file:///somewhere"}
    assert json.loads(given.dataset.profile) == {"key": recipe.set, "images": 10}
    found = tracker.search([experiment_id], {"rd3.key": recipe.key})
    assert [one.info.run_id for one in found] == [run.run_id]


def test_a_later_attempt_has_the_last_word(tracker: Tracker, experiment_id: str, tmp_path: Path) -> None:
    recipe = an_evaluation(seed=7)
    for attempt, wall_s in ((1, 30.0), (2, 10.0)):
        run = tracker.begin(recipe, FACTS, experiment_id=experiment_id, attempt=attempt)
        entry = result_of(recipe, tmp_path / str(attempt), {"wall_s": wall_s})
        run.finish(entry, tmp_path / str(attempt))
    shown = tracker.client.get_run(run.run_id)
    assert shown.data.metrics["wall_s"] == 10.0
    assert shown.inputs.dataset_inputs[0].dataset.digest == recipe.set[:32]


@pytest.mark.parametrize(
    "hours",
    [(10, 11), (11, 10), (10, 12, 11)],
    ids=["computed again", "imported from an earlier hour", "imported later"],
)
def test_a_result_that_follows_a_forgotten_one_has_the_last_word(
    tracker: Tracker, experiment_id: str, tmp_path: Path, hours: tuple[int, ...]
) -> None:
    recipe = an_evaluation(int("".join(map(str, hours))))
    for top1, hour in zip((40.0, 39.0, 38.0), hours, strict=False):
        run = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
        folder = tmp_path / str(hour)
        made = {"finished_at": f"2199-11-28T{hour}:00:00+00:00"}
        entry = result_of(recipe, folder, {"top1_pct": top1}).model_copy(update={"made": made})
        for _twice in range(2):
            run.finish(entry, folder, curve=[{"epoch": 1, "loss": top1}])
    shown = tracker.client.get_run(run.run_id).data.metrics
    assert (shown["top1_pct"], shown["loss"]) == (top1, top1)
    assert len(points(tracker, run.run_id, "top1_pct")) == len(hours)


def test_a_forgotten_result_may_be_computed_again_at_another_precision(
    tracker: Tracker, experiment_id: str, tmp_path: Path
) -> None:
    """MLflow does not let a parameter change, so that the recipe could never finish on another kind of device."""
    recipe = an_evaluation(seed=50)
    for precision in ("bf16", "fp32"):
        run = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
        entry = result_of(recipe, tmp_path / precision, {"ran_precision": precision})
        kept = run.finish(entry, tmp_path / precision)
        assert kept.result == {"ran_precision": precision}
    shown = tracker.client.get_run(run.run_id)
    assert (shown.info.status, shown.data.params["ran_precision"]) == ("FINISHED", "bf16")


def test_a_run_that_was_imported_and_is_run_again_here_is_no_longer_imported(
    tracker: Tracker, experiment_id: str, tmp_path: Path
) -> None:
    recipe = an_evaluation(seed=8)
    entry = result_of(recipe, tmp_path / "out", {"wall_s": 1.0})
    imported = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
    imported.finish(entry, tmp_path / "out", tags={"rd3.imported": "elsewhere"})
    assert tracker.client.get_run(imported.run_id).data.tags["rd3.imported"] == "elsewhere"
    again = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
    again.finish(entry, tmp_path / "out")
    assert again.run_id == imported.run_id
    assert "rd3.imported" not in tracker.client.get_run(again.run_id).data.tags


def test_runs_of_dead_drivers_are_closed(tracker: Tracker, experiment_id: str, place: Place) -> None:
    grid = tracker.grid_run(experiment_id, "killed", grid_yaml="")
    orphan = tracker.begin(an_evaluation(seed=3), FACTS, experiment_id=experiment_id, parent_run_id=grid)
    elsewhere = Tracker(Place(tracking_uri=place.tracking_uri, artifacts="s3://other/ledger", home=place.home))
    stranger = elsewhere.begin(an_evaluation(seed=4), FACTS, experiment_id=experiment_id)
    assert tracker.close_dead_runs(experiment_id, "the driver was killed") == 2
    assert tracker.close_dead_runs(experiment_id, "the driver was killed") == 0
    ended = tracker.client.get_run(orphan.run_id)
    assert (ended.info.status, ended.data.tags["rd3.reason"]) == ("KILLED", "the driver was killed")
    assert tracker.client.get_run(grid).info.status == "KILLED"
    assert tracker.client.get_run(stranger.run_id).info.status == "RUNNING"
    again = tracker.begin(an_evaluation(seed=3), FACTS, experiment_id=experiment_id, attempt=2)
    assert (
        tracker.close_dead_runs(experiment_id, "its process died", {again.recipe.key: ("oom", "it ran out of memory")})
        == 1
    )
    ended = tracker.client.get_run(orphan.run_id)
    assert (ended.data.tags["rd3.status"], ended.data.tags["rd3.reason"]) == ("oom", "it ran out of memory")
    assert tracker.client.get_run(orphan.run_id).info.status == "KILLED"
    stranger.fail("failed", "over")
    theirs = elsewhere.begin(an_evaluation(seed=3), FACTS, experiment_id=experiment_id)
    assert theirs.run_id != orphan.run_id, "two ledgers on one server do not share runs, nor files"
    theirs.fail("failed", "over")


def test_the_store_by_hand_and_the_ledger_rebuilt(tracker: Tracker, place: Place, tmp_path: Path) -> None:
    store = TrackedStore(place)
    made, lost = a_set(seed=21), a_set(seed=22)
    kept = {}
    for recipe in (made, lost):
        entry = result_of(recipe, tmp_path / recipe.key, {"count": 10})
        kept[recipe.key] = store.put(entry, tmp_path / recipe.key)
        assert store.find("set", recipe.key) == kept[recipe.key]
        assert store.put(entry, tmp_path / "not there") == kept[recipe.key]
    folder = store.fetch("set", made.key)
    assert sha256_files(folder) == store.find("set", made.key).files
    with pytest.raises(DataMissing, match=f"has no set {'e' * 12}"):
        store.fetch("set", "e" * 64)

    for path in sorted(store.fetch("set", lost.key).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    before = {kind: store.ledger.keys(kind) for kind in ("set", "evaluation")}
    for kind, keys in before.items():
        for key in keys:
            store.ledger.forget(kind, key)
    ledger = Ledger(place.artifacts)
    assert rebuild(ledger, place).added >= 1
    assert ledger.find("set", made.key) == kept[made.key]
    assert ledger.find("set", lost.key) is None
    assert rebuild(ledger, place) == (0, [])
    ledger.forget("set", made.key)
    ledger.objects.put(former_name("set", made.key), json.dumps({"key": "f" * 64}).encode())
    assert rebuild(ledger, place) == (0, []), "a former key of an entry that was upgraded"


def test_a_store_that_cannot_take_the_files(place: Place, tmp_path: Path, tracker: Tracker) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = Place(tracking_uri=place.tracking_uri, artifacts=str(tmp_path / "file"), home=place.home)
    recipe = a_set(seed=31)
    entry = result_of(recipe, tmp_path / "out", {})
    other = Tracker(blocked)
    run = other.begin(recipe, {}, experiment_id=other.experiment("blocked"))
    with pytest.raises(StoreError, match=r"Cannot store files at .*file: (Not a directory|File exists)"):
        run.finish(entry, tmp_path / "out")


def test_mlflow_itself_failing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    broken = Tracker(Place(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path), home=tmp_path))
    with pytest.raises(TrackingError, match=r"MLflow database .*: file is not a database\. Fix: move that file away"):
        broken.experiment("any")


def test_two_evaluations_of_a_set_that_end_at_once(
    tracker: Tracker, experiment_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow refuses the second of two that enter the same set among its datasets at the same moment."""
    from mlflow.exceptions import MlflowException

    recipe = an_evaluation(seed=40)
    run = tracker.begin(recipe, FACTS, experiment_id=experiment_id)
    refusals = ["(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name"]
    enter = tracker.client.log_inputs

    def log_inputs(*words: Any, **more: Any) -> None:
        if refusals:
            raise MlflowException(refusals.pop())
        enter(*words, **more)

    monkeypatch.setattr(tracker.client, "log_inputs", log_inputs)
    run.finish(result_of(recipe, tmp_path / "out", {}), tmp_path / "out")
    shown = tracker.client.get_run(run.run_id)
    assert shown.info.status == "FINISHED"
    assert shown.inputs.dataset_inputs[0].dataset.digest == recipe.set[:32]
    refusals.append("The disk is full.")
    with pytest.raises(TrackingError, match="no space left for the MLflow database"):
        run.finish(result_of(recipe, tmp_path / "again", {}), tmp_path / "again")
