"""Ledger, leases, artifacts and MLflow runs against a real S3 server that checks signatures."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.settings import Session
from pipelines.transfer.results import push_results
from rd3.errors import DataCorrupt, DataMissing, StoreError
from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tests.conformance.object_store import ObjectStoreSuite
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import open_objects
from tracking.ledger.s3 import S3Objects
from tracking.place import Place
from tracking.runs import artifacts
from tracking.store import TrackedStore
from tracking.upkeep.garbage import Garbage, find_garbage
from tracking.upkeep.rebuild import rebuild
from tracking.upkeep.verify import check_entries, everything

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),  # the first test starts the servers
]

BUCKET = "rd3-tests"


@pytest.fixture(scope="module")
def bucket(servers: Stack) -> Iterator[str]:
    """A bucket of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        servers.reach(patch)
        S3Objects(f"s3://{BUCKET}").client.create_bucket(Bucket=BUCKET)
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


class TestS3(ObjectStoreSuite):
    """Swift looks before it writes, so several writers of one moment may each be told yes; one object remains."""

    @pytest.fixture
    def store(self, bucket: str) -> S3Objects:
        return S3Objects(f"{bucket}/{uuid.uuid4().hex}")


def test_ledger_and_lease(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/ledger")
    assert ledger.keys("evaluation") == set()
    keys = [f"{number:064x}" for number in range(30)]
    for key in keys:
        ledger.add(Entry(kind="evaluation", key=key, recipe={}, result={"correct": 1}))
    assert ledger.add(Entry(kind="evaluation", key=keys[0], recipe={}, result={"correct": 2})).result == {"correct": 1}
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
    assert rebuild(store.ledger, place).added == 1
    assert store.find("set", recipe.key) == kept

    source = S3Objects(kept.artifact)
    source.put("manifest.json", b"altered at the source")
    with pytest.raises(DataCorrupt, match=r"file manifest.json has sha256"):
        artifacts.fetch(kept, tmp_path / "fresh")
    source.delete("manifest.json")
    assert not store.exists(kept)
    with pytest.raises(DataMissing, match=rf"lacks its file manifest.json at {bucket}"):
        artifacts.fetch(kept, tmp_path / "fresh")
    assert list((tmp_path / "fresh" / "set").iterdir()) == []


def test_wrong_secret_and_wrong_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"has no bucket 'rd3-nowhere'\. Fix: run `rd3 infra init`"):
        open_objects("s3://rd3-nowhere/x").put("a.json", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"rejects the S3 credentials for s3://rd3-tests/x \(SignatureDoesNotMatch\)"):
        open_objects(f"{bucket}/x").get("a.json")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody:here")
    with pytest.raises(StoreError, match=r"rejects the S3 credentials"):
        Ledger(f"{bucket}/x").keys("set")


def test_verify_and_garbage(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(f"sqlite:///{tmp_path}/home/mlflow.db", f"{bucket}/garbage", tmp_path / "home")
    store = TrackedStore(place)
    kept = {}
    for seed in (1, 2, 3):
        recipe = a_set(seed)
        kept[seed] = store.put(made(recipe, tmp_path / str(seed)), tmp_path / str(seed))
    store.ledger.forget("set", kept[3].key)
    objects = store.ledger.objects
    assert isinstance(objects, S3Objects)
    waiting = f"blocks/{kept[1].key}/00000.safetensors"
    for name in (waiting, f"blocks/{kept[3].key}/00000.safetensors", f"files/set/{kept[3].key}/deep/images.bin"):
        objects.put(name, bytes(100))
    part = {"Bucket": objects.bucket, "Key": f"{objects.prefix}files/set/{kept[2].key}/images.bin"}
    part["UploadId"] = objects.client.create_multipart_upload(**part)["UploadId"]
    objects.client.upload_part(**part, PartNumber=1, Body=bytes(5 * 2**20))

    def garbage(*, driver_lives: bool = False) -> dict[str, Garbage]:
        return {one.what: one for one in find_garbage(place, store.ledger, driver_lives=driver_lives)}

    assert garbage() == {}
    monkeypatch.setattr("tracking.upkeep.garbage.YOUNG_S", -60.0)
    assert set(garbage(driver_lives=True)) == {"blocks of a set that is done"}
    monkeypatch.setattr("tracking.upkeep.garbage.UPLOAD_S", -60.0)
    found = garbage()
    assert {what: one.size for what, one in found.items() if "run" not in what} == {
        "blocks of a set that is done": 100,
        "files without ledger entry": 100,
        "unfinished upload": 5 * 2**20,
    }
    assert found["files of a run without ledger entry"].size > 100_000
    before = set(objects.names())
    for one in found.values():
        one.remove()
    run_prefix = kept[3].artifact.removeprefix(f"{place.artifacts}/").removesuffix("/set")
    gone = before - set(objects.names())
    assert gone == {
        waiting,
        f"files/set/{kept[3].key}/deep/images.bin",
        f"{run_prefix}/entry.json",
        f"{run_prefix}/set/blocks/0.bin",
        f"{run_prefix}/set/manifest.json",
    }
    assert garbage() == {}
    assert not objects.client.list_multipart_uploads(Bucket=objects.bucket, Prefix=objects.prefix).get("Uploads")

    store.fetch("set", kept[2].key)  # a good copy in the cache must not hide what happened at the source
    S3Objects(kept[2].artifact).put("manifest.json", b"altered")
    checked = {one.key: one.damage for one in check_entries(store, everything(store.ledger))}
    assert checked[kept[1].key] == ""
    assert "file manifest.json has sha256" in checked[kept[2].key]
    assert {path.name for path in (place.home / "cache").iterdir()} == {"set"}


def test_results_of_a_local_home_are_pushed(bucket: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    own = Session(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"), home)
    recipe = a_set(seed=4)
    entry = TrackedStore(own).put(made(recipe, tmp_path / "out"), tmp_path / "out")
    other = (f"{bucket}/pushed", f"sqlite:///{tmp_path}/other.db")
    for new in (True, False):
        (brought,) = push_results([("set", recipe.key)], own, *other)
        assert (brought.key, brought.new) == (recipe.key, new)
    there = TrackedStore(Place(other[1], other[0], tmp_path / "elsewhere"))
    assert there.find("set", recipe.key).artifact.startswith(f"{bucket}/pushed/runs/")
    assert sha256_files(there.fetch("set", recipe.key)) == entry.files


def test_large_files_and_what_s3_says_of_them(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(20 * 2**20))  # several parts
    there = S3Objects(f"{bucket}/large")
    there.upload("deep/large", source)
    assert there.download("deep/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert not there.download("absent", tmp_path / "absent")
    with pytest.raises(StoreError, match=r"has no bucket 'rd3-nowhere'"):
        S3Objects("s3://rd3-nowhere/x").upload("large", source)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"rejects the S3 credentials .*SignatureDoesNotMatch"):
        S3Objects(f"{bucket}/large").upload("large", source)
