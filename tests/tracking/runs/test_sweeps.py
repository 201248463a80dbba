"""What is remembered of sweeps: scores, tests on record, and runs that are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rd3.errors import DataCorrupt
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import EXPERIMENT, SweepRecords, SweepRuns, TrialRun

TRIAL = TrialRun(
    study="s/random",
    number=3,
    name="random trial 3",
    parameters={"lr": "0.1", "tested_on": "validation"},
    curve=[(5, 40.0), (10, 50.0)],
    top1_pct=50.0,
    tags={"rd3.state": "COMPLETE", "tested_on": "validation"},
)


@pytest.fixture
def records(tmp_path: Path) -> SweepRecords:
    return SweepRecords(open_objects(tmp_path / "artifacts"))


def test_the_longer_look_at_an_evaluation_stays(records):
    assert records.score("k") is None
    short, long = {"curve": {"5": 1.0}, "top1_pct": None}, {"curve": {"5": 1.0, "10": 2.0}, "top1_pct": 3.0}
    records.keep_score("k", short)
    records.keep_score("k", long)
    records.keep_score("k", short)
    assert records.score("k") == long


def test_a_damaged_score_is_named(records):
    records.objects.put("sweeps/scores/k.json", b"{")
    with pytest.raises(DataCorrupt, match=r"sweeps/scores/k\.json cannot be read\. Fix: delete that file"):
        records.score("k")


def test_every_winner_that_met_the_test_split_is_on_record_once(records):
    first = {"evaluations": ["a", "b"], "recorded_at": "2026-01-02", "sweep": "one"}
    second = {"evaluations": ["c"], "recorded_at": "2026-01-01", "sweep": "two"}
    records.record_test("target", first)
    records.record_test("target", {**first, "recorded_at": "2026-01-03", "sweep": "the same winner again"})
    records.record_test("target", second)
    records.record_test("elsewhere", second)
    assert records.tests("target") == [second, first]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(Place(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts"), tmp_path))


def _runs(tracker: Tracker) -> list:
    client = tracker.client
    return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])


def test_a_sweeps_runs_are_found_again_and_nothing_is_logged_twice(tracker):
    for last in (False, True):
        runs = SweepRuns(tracker, "k" * 64)
        runs.open("mine", "name: mine\n", {"tested_on": "validation"})
        runs.log(TRIAL)
        runs.log(replace(TRIAL, number=4, top1_pct=None, tags={"rd3.state": "PRUNED"}))
        runs.attach({"report.md": "# mine\n", "random-history.png": b"png"}, {"random.best": 50.0})
        if not last:
            runs.close("killed", "interrupted by SIGTERM")
            assert {run.data.tags.get("rd3.reason") for run in _runs(tracker)} == {None, "interrupted by SIGTERM"}
    runs.close("done")
    found = {run.data.tags.get("rd3.trial", "parent"): run for run in _runs(tracker)}
    assert sorted(found) == ["3", "4", "parent"] and len(_runs(tracker)) == 3
    parent = found["parent"]
    assert (parent.info.status, parent.data.tags["tested_on"]) == ("FINISHED", "validation")
    assert "rd3.reason" not in parent.data.tags
    files = {file.path for file in tracker.client.list_artifacts(parent.info.run_id)}
    assert files == {"report.md", "random-history.png", "sweep.yaml"}
    child = found["3"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params == TRIAL.parameters
    history = tracker.client.get_metric_history(child.info.run_id, "validation_top1_pct")
    assert [(point.step, point.value) for point in history] == [(5, 40.0), (10, 50.0)]
    assert child.data.metrics["score"] == 50.0
    assert "score" not in found["4"].data.metrics


def test_a_run_that_a_killed_driver_left_open_is_finished(tracker):
    runs = SweepRuns(tracker, "k" * 64)
    runs.open("mine", "", {})
    tags = {**runs._tags, "rd3.kind": "sweep trial", "rd3.study": TRIAL.study, "rd3.trial": "3"}
    left = tracker.client.create_run(runs.experiment_id, tags=tags).info.run_id
    again = SweepRuns(tracker, "k" * 64)
    again.open("mine", "", {})
    again.log(TRIAL)
    again.close("failed", "why")
    assert {run.info.run_id: run.info.status for run in _runs(tracker)} == {left: "FINISHED", again.run_id: "FAILED"}


def test_another_sweep_has_runs_of_its_own(tracker):
    ids = set()
    for key in ("a" * 64, "b" * 64):
        runs = SweepRuns(tracker, key)
        runs.open("mine", "", {})
        runs.log(TRIAL)
        runs.close("done")
        ids.add(runs.run_id)
    assert len(ids) == 2 and len(_runs(tracker)) == 4
