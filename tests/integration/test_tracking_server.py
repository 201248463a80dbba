"""The same store behind a real MLflow server that serves the artifacts itself, as a shared installation does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rd3.errors import DataMissing
from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking import artifacts
from tracking.place import Place
from tracking.rebuild import rebuild
from tracking.runs import Tracker
from tracking.store import TrackedStore

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running tracking server."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=out, stderr=out, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while not _healthy(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def _healthy(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_set_behind_a_server(server: str, tmp_path: Path) -> None:
    place = Place(tracking_uri=server, artifacts=str(tmp_path / "artifacts"), home=tmp_path / "home")
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
    assert rebuild(store.ledger, place) == 1
    assert store.find("set", recipe.key) == kept

    gone = kept.model_copy(update={"artifact": kept.artifact.replace("/set", "/gone")})
    assert not store.exists(gone)
    with pytest.raises(DataMissing, match="lacks its file"):
        artifacts.fetch(gone, tmp_path / "fresh", place.tracking_uri)
