"""What is asked of a store before it is trusted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from rd3.errors import StoreError, TrackingError
from tracking.ledger.object_store import FolderObjects
from tracking.ledger.s3 import ahead_of
from tracking.place import Place
from tracking.runs.artifacts import repository
from tracking.upkeep import health
from tracking.upkeep.health import prepare_store


def test_a_clock_from_a_header():
    """The server says whole seconds: 1000 stands for anything until 1001."""
    headers = {"date": formatdate(1000, usegmt=True)}
    assert ahead_of(headers, 1000.4, 1000.6) == pytest.approx(0.0)
    assert ahead_of(headers, 1045.4, 1045.6) == pytest.approx(45.0)
    assert ahead_of(headers, 980.0, 981.0) == pytest.approx(-20.0)
    assert ahead_of({}, 5.0, 6.0) == 0.0


def test_a_folder_is_made_and_left_empty(tmp_path: Path):
    root = tmp_path / "artifacts"
    assert list(prepare_store(str(root))) == [f"{root}: write, read, conditional write, list and delete work"]
    assert list(root.rglob("*")) == []
    health.check_store(str(root))


class Forgetful(FolderObjects):
    """Takes objects and loses them."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        return True


class Overwriting(FolderObjects):
    """Does not know conditional writes, as some S3 servers."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        return super().put(name, data)


class Blind(FolderObjects):
    """Does not list what it has."""

    def names(self, prefix: str = "") -> Iterator[str]:
        yield from ()


class Keeping(FolderObjects):
    """Does not delete."""

    def delete(self, name: str) -> None:
        """Nothing."""


class ReadOnly(FolderObjects):
    """Refuses a key that may only read, whatever it asks for."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        raise StoreError("It does not allow PutObject.", "grant that permission")

    def delete(self, name: str) -> None:
        raise StoreError("It does not allow DeleteObject.", "grant that permission")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Forgetful, "returns other content than was written"),
        (Overwriting, r"ignores the condition If-None-Match and overwrites .* Fix: use a server with"),
        (Blind, "does not list an object that was written"),
        (Keeping, "still has an object that was deleted. Fix: allow RD3's key"),
        (ReadOnly, "does not allow PutObject"),
    ],
)
def test_a_store_that_does_not_do_as_it_should(
    kind: Callable[[Path], FolderObjects], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(health, "open_objects", lambda root: kind(Path(root)))
    with pytest.raises(StoreError, match=said):
        health.probe_store(str(tmp_path))


@pytest.mark.parametrize(
    ("location", "own"),
    [
        ("/srv/mlruns/1", True),
        ("file:///srv/mlruns/1", True),
        ("./mlruns/1", True),
        ("mlflow-artifacts:/1", False),
        ("s3://bucket/1", False),
    ],
)
def test_a_server_with_files_in_a_folder_of_its_machine(location: str, own: bool):
    place = Place("https://tracking.example", "s3://bucket/rd3", Path("home"))
    if not own:
        health.check_location(place, location)
        return
    with pytest.raises(TrackingError, match="a folder that other machines do not see") as refused:
        health.check_location(place, location)
    assert "--artifacts-destination" in refused.value.fix


def test_a_database_may_have_files_in_a_folder():
    health.check_location(Place("sqlite:////a/m.db", "/a", Path("home")), "file:///a/runs")


@pytest.mark.parametrize("scheme", ["sftp", "gs"])
def test_a_location_whose_package_is_missing_is_one_sentence(scheme: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("paramiko", "pysftp", "google.cloud.storage"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        TrackingError, match=rf"files are at {scheme}://tracking\.example/mlruns, for .* a package"
    ) as caught:
        repository(f"{scheme}://me:secret@tracking.example/mlruns", "http://tracking.example")
    assert "--serve-artifacts" in caught.value.fix and "secret" not in str(caught.value)


def test_files_through_tracking_need_no_permission_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The key of a trial has none (infra/s3/policy-trial.json)."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def denied(_self: object, _path: str | None = None) -> None:
        raise MlflowException("AccessDenied")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", denied)
    health.probe_artifacts(Place(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"), tmp_path))
