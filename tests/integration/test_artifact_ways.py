"""The two ways of a result's files: through the tracking server, and straight to S3 where they are large."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import session
from rd3.errors import StoreError
from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking.ledger.ledger import Ledger
from tracking.runs import runs
from tracking.runs.runs import Tracker
from tracking.store import GivenStore, TrackedStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


def made(seed: int, folder: Path) -> tuple[SetRecipe, Entry]:
    """A set of 100 kB."""
    data = Data(name="digits", fingerprint="f" * 64)
    common = {"settings": {}, "data": data, "classes": "c" * 64, "resolution": 32, "ipc": 1}
    recipe = SetRecipe(method="random", version=1, set_seed=seed, **common)
    (folder / "blocks").mkdir(parents=True)
    (folder / "blocks" / "0.bin").write_bytes(os.urandom(100_000))
    (folder / "manifest.json").write_text("{}")
    plain = recipe.model_dump(mode="json")
    return recipe, Entry(kind="set", key=recipe.key, recipe=plain, result={}, files=sha256_files(folder))


def test_large_files_go_straight_to_s3(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DIRECT_ABOVE", 50_000)
    place = session()
    store = TrackedStore(place)
    recipe, entry = made(1, tmp_path / "out")
    kept = store.put(entry, tmp_path / "out")
    assert kept.artifact == f"{place.artifacts}/files/set/{recipe.key}"
    assert store.exists(kept)
    assert sha256_files(store.fetch("set", recipe.key)) == entry.files
    shown = Tracker(place).client.list_artifacts(kept.run_id, "set")
    assert [item.path for item in shown] == ["set/manifest.json"], "what people look at is in MLflow all the same"


def test_a_trial_needs_no_s3_secret(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "DIRECT_ABOVE", 50_000)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = session()
    with pytest.raises(StoreError, match="There are no S3 credentials"):
        Ledger(place.artifacts).keys("set")

    recipe, entry = made(2, tmp_path / "out")
    tracker = Tracker(place)
    run = tracker.begin(recipe, {}, experiment_id=tracker.experiment("rd3"))
    kept = run.finish(entry, tmp_path / "out")
    assert kept.artifact is not None
    assert kept.artifact.startswith("mlflow-artifacts:/")
    assert sha256_files(GivenStore(place, [kept]).fetch("set", recipe.key)) == entry.files
