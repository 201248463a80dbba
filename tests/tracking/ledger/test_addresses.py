"""Addresses below a root, as they are stored and as they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rd3.store import Entry
from tracking.ledger.addresses import name_below, to_absolute, to_relative
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import open_objects


def entry(artifact: str | None) -> Entry:
    return Entry(kind="set", key="a1" * 32, recipe={"kind": "set"}, result={}, artifact=artifact)


@pytest.mark.parametrize(
    ("root", "uri", "name"),
    [
        ("/a/b", "file:///a/b/runs/1/artifacts/set", "runs/1/artifacts/set"),
        ("/a/b", "/a/b/runs/1", "runs/1"),
        ("/a b/#%20'?", "file:///a%20b/%23%2520%27%3F/files/x%20y", "files/x y"),
        ("s3://bucket/p", "s3://bucket/p/files/set/1", "files/set/1"),
        ("s3://bucket", "s3://bucket/runs/1", "runs/1"),
    ],
)
def test_below_a_root(root: str, uri: str, name: str) -> None:
    objects = open_objects(root)
    assert name_below(objects, uri) == name
    stored = to_relative(entry(uri), objects)
    assert stored.artifact == name
    back = to_absolute(stored, objects).artifact
    assert name_below(objects, back or "") == name
    assert to_relative(stored, objects) == stored


@pytest.mark.parametrize("root", ["/a/b", "s3://bucket/p"])
@pytest.mark.parametrize(
    "uri", ["file:///a/bc/x", "/a/b", "s3://bucket/pq/x", "s3://bucket/p", "mlflow-artifacts:/1/x", "http://h/x", None]
)
def test_elsewhere(root: str, uri: str | None) -> None:
    objects = open_objects(root)
    assert to_relative(entry(uri), objects) == entry(uri) == to_absolute(entry(uri), objects)


def test_a_moved_ledger_reads_the_address_of_today(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "first"))
    kept = ledger.add(entry(ledger.objects.url("runs/1/artifacts/set")))
    assert kept.artifact == (tmp_path / "first/runs/1/artifacts/set").as_uri()
    assert ledger.find("set", kept.key) == kept
    (tmp_path / "first").rename(tmp_path / "second")
    found = Ledger(str(tmp_path / "second")).find("set", kept.key)
    assert found is not None
    assert found.artifact == (tmp_path / "second/runs/1/artifacts/set").as_uri()
    assert (found.digest, found.altered) == (kept.digest, False)
    (path,) = (tmp_path / "second").rglob("*.json")
    assert json.loads(path.read_text())["artifact"] == "runs/1/artifacts/set"
