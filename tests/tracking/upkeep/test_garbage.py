"""What garbage collection must not take: files that an entry names, and runs of another machine's ledger."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from rd3.recipe import Data, SetRecipe
from rd3.store import Entry
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.upkeep import garbage

KEY = "a" * 64


def put_aged(ledger: Ledger, name: str, monkeypatch) -> None:
    ledger.objects.put(name, b"pixels")
    monkeypatch.setattr(garbage, "YOUNG_S", -1.0)


def test_files_beside_the_ledger_of_a_folder_are_found_by_their_entry(tmp_path: Path, monkeypatch):
    """As after a bucket with files uploaded directly was copied into a folder."""
    ledger = Ledger(str(tmp_path / "artifacts"))
    ledger.add(Entry(kind="set", key=KEY, recipe={"format": 2}, result={}, artifact=f"files/set/{KEY}"))
    for key in (KEY, "b" * 64):
        put_aged(ledger, f"files/set/{key}/0.bin", monkeypatch)
    place = Place(f"sqlite:///{tmp_path}/mlflow.db", ledger.root, tmp_path)
    found = [one.where for one in garbage.find_garbage(place, ledger, driver_lives=False)]
    assert found == [f"{ledger.root}/files/set/{'b' * 64}"]


def test_a_ledger_at_an_equal_path_on_a_shared_server_keeps_its_files(tmp_path: Path, monkeypatch):
    here = Ledger(str(tmp_path / "artifacts"))
    put_aged(here, "unrelated", monkeypatch)
    place = Place(f"sqlite:///{tmp_path}/mlflow.db", here.root, tmp_path)
    here.objects.put("ledger.json", json.dumps({"id": "ours", "where": _inode(here)}).encode())
    data = Data(name="digits", fingerprint="f" * 64)
    recipe = SetRecipe(
        method="random", version=1, settings={}, ipc=1, set_seed=0, data=data, classes="c" * 64, resolution=32
    )
    runs = {}
    for ledger_id in ("ours", "theirs"):
        tracker = Tracker(replace(place, ledger_id=ledger_id))
        run = tracker.begin(recipe, {}, experiment_id=tracker.experiment("rd3"))
        tracker.client.log_text(run.run_id, "pixels", "set/0.bin")
        run.fail("failed", "stopped")
        runs[ledger_id] = run.artifact_uri
    time.sleep(0.01)  # an end time in milliseconds lies before now
    found = [one.where for one in garbage.find_garbage(place, here, driver_lives=False) if one.what.startswith("files")]
    assert found == [runs["ours"]]
    here.objects.put("ledger.json", json.dumps({"id": "theirs", "where": "inode 1"}).encode())
    found = [one.where for one in garbage.find_garbage(place, here, driver_lives=False) if one.what.startswith("files")]
    assert found == [], "this is a copy of theirs, which may go on elsewhere"


def _inode(ledger: Ledger) -> str:
    return f"inode {Path(ledger.root).stat().st_ino}"
