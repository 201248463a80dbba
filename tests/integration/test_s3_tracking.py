"""Ledger, leases, artifacts and MLflow runs against a real S3 server that checks signatures.

The server's own environment is installed once into ``$RD3_TEST_CACHE`` (default: below the temporary folder).
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rd3.errors import DataCorrupt, DataMissing, StoreError
from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking import artifacts
from tracking.documents import S3Documents, open_documents
from tracking.ledger import Ledger
from tracking.place import Place
from tracking.rebuild import rebuild
from tracking.store import TrackedStore

pytestmark = [
    pytest.mark.integration,
    # SQLAlchemy says this of MLflow's own models.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

SCRIPT = Path(__file__).parents[2] / "infra" / "s3" / "swift.sh"
BUCKET = "rd3-tests"


def free_ports() -> int:
    """A port P such that P, P+10, P+11 and P+12 are free on loopback."""
    for first in range(21000 + os.getpid() % 5000, 32000, 13):
        try:
            for port in (first, first + 10, first + 11, first + 12):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A running S3 server; the AWS variables that reach it."""
    cache = Path(os.environ.get("RD3_TEST_CACHE") or Path(tempfile.gettempdir()) / "rd3-test-cache")
    cache.mkdir(parents=True, exist_ok=True)
    port = free_ports()
    own = {
        "S3_HOME": str(tmp_path_factory.mktemp("s3")),
        "S3_VENV": str(cache / "swift"),
        "S3_PORT": str(port),
        "AWS_ACCESS_KEY_ID": "rd3:rd3",
        "AWS_SECRET_ACCESS_KEY": "rd3-development-secret",
    }
    environment = os.environ | own
    started = subprocess.run([str(SCRIPT), "start"], env=environment, capture_output=True, text=True)
    if started.returncode:
        subprocess.run([str(SCRIPT), "stop"], env=environment, check=True)
        if os.environ.get("CI"):
            pytest.fail(f"the S3 server did not start: {started.stdout}{started.stderr}")
        pytest.skip(f"no S3 server here: {started.stderr.strip().splitlines()[-1:]}")
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": own["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": own["AWS_SECRET_ACCESS_KEY"],
        "AWS_DEFAULT_REGION": "us-east-1",
        # Nothing of the user's own may leak in.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    subprocess.run([str(SCRIPT), "stop"], env=environment, check=True)


@pytest.fixture(scope="module")
def bucket(server: dict[str, str]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        for name, value in server.items():
            patch.setenv(name, value)
        S3Documents(f"s3://{BUCKET}").client.create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"


def a_set(seed: int) -> SetRecipe:
    return SetRecipe(
        method="random",
        version=1,
        settings={},
        data=Data(name="digits", fingerprint="f" * 64),
        classes="c" * 64,
        resolution=32,
        ipc=1,
        set_seed=seed,
    )


def made(recipe: SetRecipe, folder: Path) -> Entry:
    (folder / "blocks").mkdir(parents=True)
    (folder / "blocks" / "0.bin").write_bytes(os.urandom(100_000))
    (folder / "manifest.json").write_text("{}")
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    return Entry(kind="set", key=recipe.key, recipe=plain, result={"count": 10}, files=sha256_files(folder))


def test_documents_of_many_writers_one_remains(bucket: str) -> None:
    documents = open_documents(f"{bucket}/documents")
    assert documents.get("a/1.json") is None
    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(lambda n: documents.put("a/1.json", b"%d" % n, only_if_absent=True), range(12)))
    # This server looks before it writes, so writers of the same moment may each be told yes; one document remains.
    assert documents.get("a/1.json") in {b"%d" % n for n, yes in enumerate(won) if yes}
    assert not documents.put("a/1.json", b"late", only_if_absent=True)
    assert documents.put("a/1.json", b"over")
    assert documents.get("a/1.json") == b"over"
    documents.put("a/2.json", b"")
    documents.put("ab.json", b"")
    assert set(documents.names("a/")) == {"a/1.json", "a/2.json"}
    assert set(documents.names()) == {"a/1.json", "a/2.json", "ab.json"}
    documents.delete("a/1.json")
    documents.delete("a/1.json")
    assert documents.get("a/1.json") is None


def test_ledger_and_lease(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    assert ledger.keys("evaluation") == set()
    keys = [f"{number:064x}" for number in range(30)]
    for key in keys:
        ledger.mark(Entry(kind="evaluation", key=key, recipe={}, result={"correct": 1}))
    assert ledger.mark(Entry(kind="evaluation", key=keys[0], recipe={}, result={"correct": 2})).result == {"correct": 1}
    assert ledger.keys("evaluation") == set(keys)
    assert set(ledger.find_many("evaluation", [*keys[20:], "f" * 64])) == set(keys[20:])
    ledger.forget("evaluation", keys[3])
    assert ledger.find("evaluation", keys[3]) is None
    ledger.set_role("digits", "mine", {"network": "resnet18"})
    assert ledger.roles() == {("digits", "mine"): {"network": "resnet18"}}
    with ledger.lease() as held:
        with pytest.raises(StoreError, match=rf"{bucket}/ledger is in use by process {os.getpid()} on"):
            Ledger(f"{bucket}/ledger").lease().__enter__()
        held.beat()
        held.check()
    with ledger.lease():
        pass


def test_an_artifact_travels_through_mlflow_and_back(bucket: str, tmp_path: Path) -> None:
    place = Place(f"sqlite:///{tmp_path}/home/mlflow.db", f"{bucket}/project", tmp_path / "home")
    store = TrackedStore(place)
    recipe = a_set(seed=1)
    entry = made(recipe, tmp_path / "out")
    kept = store.put(entry, tmp_path / "out")
    assert kept.artifact is not None
    assert kept.artifact.startswith(f"{bucket}/project/runs/")
    assert store.exists(kept)

    folder = store.fetch("set", recipe.key)
    assert sha256_files(folder) == entry.files
    (folder / "manifest.json").write_text("damaged in the cache")
    assert sha256_files(store.fetch("set", recipe.key)) == entry.files
    another = Place(place.tracking_uri, place.artifacts, tmp_path / "another machine")
    assert sha256_files(TrackedStore(another).fetch("set", recipe.key)) == entry.files

    store.ledger.forget("set", recipe.key)
    assert rebuild(store.ledger, place) == 1
    assert store.find("set", recipe.key) == kept

    source = S3Documents(kept.artifact)
    source.put("manifest.json", b"altered at the source")
    with pytest.raises(DataCorrupt, match=r"file manifest.json has sha256"):
        artifacts.verify(kept, tmp_path / "fresh")
    source.delete("manifest.json")
    assert not store.exists(kept)
    with pytest.raises(DataMissing, match=rf"lacks its file manifest.json at {bucket}"):
        artifacts.fetch(kept, tmp_path / "fresh")
    assert list((tmp_path / "fresh" / "set").iterdir()) == []


def test_wrong_secret_and_wrong_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"has no bucket 'rd3-nowhere'\. Fix: create it"):
        open_documents("s3://rd3-nowhere/x").put("a.json", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"refuses the S3 credentials for s3://rd3-tests/x \(SignatureDoesNotMatch\)"):
        open_documents(f"{bucket}/x").get("a.json")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody:here")
    with pytest.raises(StoreError, match=r"refuses the S3 credentials"):
        Ledger(f"{bucket}/x").keys("set")
