"""What writers say about experiments on servers and in databases other than SQLite."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rd3.errors import TrackingError
from tracking.place import Place
from tracking.upkeep import relocate


@pytest.mark.parametrize(
    ("uri", "location", "said"),
    [
        ("https://tracking.example", "mlflow-artifacts:/1", ""),
        ("https://tracking.example", "s3://mlflow/1", ""),
        ("https://tracking.example", "/srv/mlruns/1", "a folder that other machines do not see"),
        ("postgresql+psycopg2://host/mlflow", "s3://bucket/rd3/runs", ""),
        (
            "postgresql+psycopg2://host/mlflow",
            "s3://bucket/old/runs",
            "s3://bucket/old/runs, not below s3://bucket/rd3",
        ),
    ],
)
def test_where_an_experiment_has_its_files(monkeypatch: pytest.MonkeyPatch, uri: str, location: str, said: str):
    client = SimpleNamespace(get_experiment_by_name=lambda _name: SimpleNamespace(artifact_location=location))
    tracker = SimpleNamespace(check=lambda: None, errors=contextlib.nullcontext, client=client)
    monkeypatch.setattr(relocate, "Tracker", lambda _place: tracker)
    lines = relocate.settle(Place(uri, "s3://bucket/rd3", Path("home")))
    assert len(lines) == bool(said)
    assert all(said in line and "Fix: " in line for line in lines)


def test_a_server_that_does_not_answer_is_left_to_its_first_use(monkeypatch: pytest.MonkeyPatch):
    def check() -> None:
        raise TrackingError("It does not answer.", "start it")

    monkeypatch.setattr(relocate, "Tracker", lambda _place: SimpleNamespace(check=check))
    assert relocate.settle(Place("https://tracking.example", "s3://bucket/rd3", Path("home"))) == []


def test_an_entry_that_is_not_one_is_left_to_verify(tmp_path: Path):
    place = Place(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), tmp_path)
    folder = tmp_path / "artifacts" / "by-key" / "set"
    folder.mkdir(parents=True)
    for name, content in (("a", "[]"), ("b", "{"), ("c", json.dumps({"artifact": f"{tmp_path}/old/runs/1"}))):
        (folder / f"{name}.json").write_text(content)
    assert relocate.relocate(place, str(tmp_path / "old")).entries == 1
    assert json.loads((folder / "c.json").read_text()) == {"artifact": "runs/1"}
