"""ObjectStore in a folder, and what is said when a folder or an S3 server cannot be used."""

from __future__ import annotations

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rd3.errors import StoreError
from tests.conformance.object_store import ObjectStoreSuite
from tracking.ledger.object_store import FolderObjects, local_path, open_objects
from tracking.ledger.s3 import S3Objects


class TestFolder(ObjectStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FolderObjects:
        return FolderObjects(tmp_path / "new" / "root")


def test_what_is_being_written_is_hidden(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    objects.put("by-key/set/ab1.json", b"")
    (tmp_path / "by-key/set/.ab3.json.x1").write_bytes(b"half")
    assert list(objects.names("by-key/set/ab")) == ["by-key/set/ab1.json"]


def test_of_many_writers_exactly_one_wins(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: objects.put("x/y.json", b"%d" % n, only_if_absent=True), range(40)))
    assert sum(won) == 1
    assert objects.get("x/y.json") == b"%d" % won.index(True)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y.json"]


def test_a_file_system_without_hard_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what Linux says of FAT

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match=r"has no hard links.* Fix: set RD3_ARTIFACTS to a folder on another"):
        open_objects(tmp_path).put("x/y.json", b"", only_if_absent=True)
    assert list((tmp_path / "x").iterdir()) == []


def test_roots_are_folders_or_buckets(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    assert open_objects(folder.as_uri()).root == str(folder)
    assert local_path(folder.as_uri()) == folder
    assert isinstance(open_objects(folder), FolderObjects)
    bucket = open_objects("s3://bucket/some/prefix/")
    assert isinstance(bucket, S3Objects)
    assert (bucket.bucket, bucket.prefix) == ("bucket", "some/prefix/")
    assert S3Objects("s3://bucket").prefix == ""
    with pytest.raises(StoreError, match="cannot be stored at gs://bucket"):
        open_objects("gs://bucket")
    with pytest.raises(StoreError, match="does not name a bucket"):
        open_objects("s3:///prefix")


def test_a_root_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    objects = open_objects(tmp_path / "file" / "artifacts")
    with pytest.raises(StoreError, match=r"folder .*file/artifacts: Not a directory\. Fix: make"):
        objects.put("a.json", b"")


def test_a_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a small tmpfs cannot be mounted here")
    try:
        objects = open_objects(tmp_path)
        with pytest.raises(StoreError, match=r"No space left on device\. Fix: free space"):
            objects.put("a.json", bytes(64 * 1024), only_if_absent=True)
        assert list(objects.names()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_s3_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StoreError, match=rf"127.0.0.1:{closed_port} does not respond \(Connection refused\)"):
        open_objects("s3://bucket/x").get("a.json")


def test_no_s3_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"no S3 credentials for s3://bucket/x\. Fix: set AWS_ACCESS_KEY_ID"):
        open_objects("s3://bucket/x").put("a.json", b"")


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_permissions_obey_the_umask(tmp_path: Path, mask: int) -> None:
    (tmp_path / "source").write_bytes(b"large")
    objects = open_objects(tmp_path / "root")
    before = os.umask(mask)
    try:
        objects.put("by-key/set/a.json", b"{}", only_if_absent=True)
        objects.put("roles/a.json", b"{}")
        objects.upload("files/a", tmp_path / "source")
    finally:
        os.umask(before)
    paths = list((tmp_path / "root").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o666 & ~mask}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o777 & ~mask}
