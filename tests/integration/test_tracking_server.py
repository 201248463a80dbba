"""The same store behind a real MLflow server that serves the artifacts itself, as a shared installation does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rd3.errors import DataMissing
from rd3.recipe import KINDS, Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking.place import Place
from tracking.runs import artifacts
from tracking.runs.runs import Tracker
from tracking.store import TrackedStore
from tracking.upkeep.rebuild import rebuild

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def test_a_set_behind_a_server(driver: Stack, tmp_path: Path) -> None:
    place = Place(
        tracking_uri=driver.env["MLFLOW_TRACKING_URI"], artifacts=str(tmp_path / "artifacts"), home=tmp_path / "home"
    )
    Tracker(place).check()
    data = Data(name="digits", fingerprint="f" * 64)
    recipe = SetRecipe(
        method="random", version=1, settings={}, data=data, classes="c" * 64, resolution=32, ipc=1, set_seed=0
    )
    folder = tmp_path / "out"
    (folder / "blocks").mkdir(parents=True)
    (folder / "blocks" / "0.bin").write_bytes(os.urandom(10_000))
    (folder / "manifest.json").write_text("{}")
    plain = recipe.model_dump(mode="json")
    entry = Entry(kind="set", key=recipe.key, recipe=plain, result={"count": 10}, files=sha256_files(folder))

    store = TrackedStore(place)
    kept = store.put(entry, folder)
    assert kept.artifact is not None
    assert kept.artifact.startswith("mlflow-artifacts:/")
    assert store.exists(kept)
    assert sha256_files(store.fetch("set", recipe.key)) == entry.files
    store.ledger.forget("set", recipe.key)
    # What other tests have left on the server comes in as well.
    assert rebuild(store.ledger, place).added == sum(len(store.ledger.keys(kind)) for kind in KINDS) >= 1
    assert store.find("set", recipe.key) == kept

    gone = kept.model_copy(update={"artifact": kept.artifact.replace("/set", "/gone")})
    assert not store.exists(gone)
    with pytest.raises(DataMissing, match="lacks its file"):
        artifacts.fetch(gone, tmp_path / "fresh", place.tracking_uri)
