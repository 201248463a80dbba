"""Unfinished work by way of MLflow: a machine sends it, another one goes on, and nothing is left of it at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd3.errors import TrackingUnavailable
from rd3.recipe import Data, SetRecipe
from tracking.place import Place
from tracking.runs.runs import OpenRun, Tracker
from tracking.runs.unfinished import UnfinishedWork


@pytest.fixture
def run(tmp_path: Path) -> OpenRun:
    tracker = Tracker(Place(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), tmp_path))
    recipe = SetRecipe(
        method="random",
        version=1,
        settings={},
        data=Data(name="digits", fingerprint="f"),
        classes="c",
        resolution=32,
        ipc=1,
    )
    return tracker.begin(recipe, {}, experiment_id=tracker.experiment("rd3"))


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_work_travels_and_leaves_nothing_behind(run: OpenRun, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "blocks").mkdir(parents=True)
    (here / "blocks" / "0").write_text("first")
    (here / "blocks" / ".1.half").write_text("being writ")
    unfinished = UnfinishedWork(run, here, every_s=0.0)
    unfinished.upload()
    (here / "blocks" / "1").write_text("second")
    (here / "checkpoint").write_text("epoch 3")
    unfinished.upload()

    other = UnfinishedWork(run, there)
    other.download()
    assert files(there) == {"blocks/0": "first", "blocks/1": "second", "checkpoint": "epoch 3"}

    (there / "checkpoint").write_text("epoch 4")
    (there / "blocks" / "1").unlink()
    other.download()
    assert files(there) == {"blocks/0": "first", "blocks/1": "second", "checkpoint": "epoch 4"}, "what is here stays"
    (there / ".cut-short").mkdir()
    (there / ".cut-short" / "2").write_text("half")
    last = UnfinishedWork(run, there, every_s=0.0)
    last.upload()
    assert [item.path for item in run.tracker.client.list_artifacts(run.run_id, "unfinished")] == [
        "unfinished/blocks",
        "unfinished/checkpoint",
    ]

    other.discard()
    assert run.tracker.client.list_artifacts(run.run_id, "unfinished") == []
    UnfinishedWork(run, tmp_path / "third").download()
    assert not (tmp_path / "third").exists()


def test_nothing_is_sent_before_it_is_time(run: OpenRun, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "block").write_text("first")
    unfinished = UnfinishedWork(run, tmp_path / "here", every_s=1000.0)
    unfinished.upload()
    assert run.tracker.client.list_artifacts(run.run_id, "unfinished") == []
    unfinished.upload(leaving=True)
    assert [item.path for item in run.tracker.client.list_artifacts(run.run_id, "unfinished")] == ["unfinished/block"]


def test_a_server_that_is_away_stops_no_work(run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def away(*_args: object) -> None:
        raise MlflowException("Connection refused")

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "block").write_text("first")
    unfinished = UnfinishedWork(run, tmp_path / "here", every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(run.tracker.client, "log_artifact", away)
        unfinished.upload()
    unfinished.upload()
    assert [item.path for item in run.tracker.client.list_artifacts(run.run_id, "unfinished")] == ["unfinished/block"]
    with monkeypatch.context() as patch:
        patch.setattr(run.tracker.client, "list_artifacts", away)
        with pytest.raises(TrackingUnavailable):  # whoever goes on without it would overwrite it
            UnfinishedWork(run, tmp_path / "there").download()
