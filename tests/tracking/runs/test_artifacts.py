"""Files behind an entry: in place and verified on this machine; what is damaged or gone is named."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from rd3.errors import DataCorrupt, DataMissing, StoreError
from rd3.store import Entry, sha256_files
from tests.tracking.remote import RemoteFolder
from tracking.runs import artifacts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "with space" / "set"
    (made / "blocks").mkdir(parents=True)
    (made / "blocks" / "0.npz").write_bytes(b"pixels")
    (made / "manifest.json").write_text("{}")
    return made


@pytest.fixture
def entry(folder: Path) -> Entry:
    files = sha256_files(folder)
    return Entry(kind="set", key="ab" * 32, recipe={}, result={}, files=files, artifact=folder.as_uri())


def test_local_files_are_used_where_they_are(entry: Entry, folder: Path, tmp_path: Path) -> None:
    assert artifacts.exists(entry)
    assert artifacts.fetch(entry, tmp_path / "cache") == folder
    plain = entry.model_copy(update={"artifact": str(folder)})
    assert artifacts.fetch(plain, tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_write_left_behind_is_not_part_of_it(entry: Entry, folder: Path) -> None:
    (folder / ".checkpoint.safetensors.x1").write_bytes(b"half")
    assert sha256_files(folder) == entry.files
    before = entry.model_copy(update={"files": {**entry.files, ".checkpoint.safetensors.x1": "ab" * 32}})
    assert artifacts.exists(before), "an older entry may list such a file"


def test_an_altered_file(entry: Entry, folder: Path, tmp_path: Path) -> None:
    (folder / "blocks" / "0.npz").write_bytes(b"pixelz")
    assert artifacts.exists(entry)
    with pytest.raises(DataCorrupt, match=r"set abababababab: file blocks/0.npz has sha256"):
        artifacts.fetch(entry, tmp_path / "cache")


def test_a_missing_file(entry: Entry, folder: Path, tmp_path: Path) -> None:
    (folder / "blocks" / "0.npz").unlink()
    assert not artifacts.exists(entry)
    with pytest.raises(DataMissing, match=r"set abababababab lacks its file blocks/0.npz"):
        artifacts.fetch(entry, tmp_path / "cache")


def test_an_entry_without_files(entry: Entry, tmp_path: Path) -> None:
    nowhere = entry.model_copy(update={"artifact": None})
    assert not artifacts.exists(nowhere)
    with pytest.raises(DataMissing, match="set abababababab has no artifact"):
        artifacts.fetch(nowhere, tmp_path / "cache")


@pytest.fixture
def remote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteFolder:
    """The entry's folder, as behind the address s3://bucket/set."""
    made = RemoteFolder(folder)
    monkeypatch.setattr(artifacts, "open_objects", {"s3://bucket/set": made}.__getitem__)
    return made


@pytest.fixture
def away(entry: Entry) -> Entry:
    return entry.model_copy(update={"artifact": "s3://bucket/set"})


def test_remote_files_are_downloaded_once(away: Entry, remote: RemoteFolder, tmp_path: Path) -> None:
    for _use in range(2):
        assert sha256_files(artifacts.fetch(away, tmp_path / "cache")) == away.files
    assert remote.downloads == 2, "one for each of two files"


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_permissions_of_a_copy_obey_the_umask(away: Entry, remote: RemoteFolder, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        copy = artifacts.fetch(away, tmp_path / "cache")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (copy.parent, copy, copy / "blocks")] == [0o777 & ~mask] * 3
    assert stat.S_IMODE((copy / "manifest.json").stat().st_mode) == 0o666 & ~mask


def test_a_damaged_download_is_tried_again(away: Entry, remote: RemoteFolder, tmp_path: Path) -> None:
    remote.damaged = 1
    assert sha256_files(artifacts.fetch(away, tmp_path / "cache")) == away.files
    assert remote.downloads == 4


def test_a_damaged_copy_is_downloaded_again(away: Entry, remote: RemoteFolder, tmp_path: Path) -> None:
    copy = artifacts.fetch(away, tmp_path / "cache")
    (copy / "blocks" / "0.npz").write_bytes(b"pixelz")
    (copy / "manifest.json").unlink()
    remote.damaged = 1
    assert artifacts.fetch(away, tmp_path / "cache") == copy
    assert sha256_files(copy) == away.files
    assert [path.name for path in copy.parent.iterdir()] == [copy.name], "nothing half-done is left"


def test_a_second_damaged_download_is_an_error(away: Entry, remote: RemoteFolder, tmp_path: Path) -> None:
    remote.damaged = 3
    with pytest.raises(DataCorrupt, match=r"set abababababab: file blocks/0.npz has sha256"):
        artifacts.fetch(away, tmp_path / "cache")
    assert list((tmp_path / "cache" / "set").iterdir()) == []
    assert sha256_files(artifacts.fetch(away, tmp_path / "cache")) == away.files


def test_a_full_disk_names_the_variable_of_the_cache(
    away: Entry, remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_name: str, _target: Path) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "download", full)
    with pytest.raises(StoreError, match=r"/cache: No space left on device\. Fix: free space there, or set RD3_HOME"):
        artifacts.fetch(away, tmp_path / "cache")


def test_the_source_is_read_past_the_cache(away: Entry, remote: RemoteFolder, folder: Path, tmp_path: Path) -> None:
    copy = artifacts.fetch(away, tmp_path / "cache")
    (copy / "manifest.json").write_text("[]")
    artifacts.check_source(away, tmp_path / "cache")
    assert (copy / "manifest.json").read_text() == "[]", "copies are left alone"
    artifacts.fetch(away, tmp_path / "cache")
    (folder / "manifest.json").write_text("[]")
    artifacts.fetch(away, tmp_path / "cache")
    with pytest.raises(DataCorrupt, match=r"file manifest.json has sha256"):
        artifacts.check_source(away, tmp_path / "cache")
    (folder / "manifest.json").unlink()
    with pytest.raises(DataMissing, match=r"lacks its file manifest.json at s3://bucket/set"):
        artifacts.check_source(away, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["set"]


def test_the_source_of_local_files_is_where_they_are(entry: Entry, folder: Path, tmp_path: Path) -> None:
    artifacts.check_source(entry, tmp_path / "cache")
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(DataCorrupt, match=r"file manifest.json has sha256"):
        artifacts.check_source(entry, tmp_path / "cache")
