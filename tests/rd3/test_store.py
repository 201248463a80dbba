"""The folder store: whole or absent, verified on the way out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rd3.errors import DataCorrupt, DataMissing, StoreError
from rd3.store import Entry, FolderStore, existing, sha256_files, write_atomically


@pytest.fixture
def made(tmp_path: Path) -> tuple[Entry, Path]:
    folder = tmp_path / "made"
    (folder / "blocks").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "blocks" / "0").write_bytes(b"\x00\x01")
    entry = Entry(kind="set", key="a" * 64, recipe={}, result={"count": 1}, files=sha256_files(folder))
    return entry, folder


def test_what_goes_in_comes_out(tmp_path, made):
    entry, folder = made
    store = FolderStore(tmp_path / "store")
    assert store.find("set", entry.key) is None
    kept = store.put(entry, folder)
    assert store.find("set", entry.key) == kept
    assert sha256_files(store.fetch("set", entry.key)) == entry.files


def test_the_first_entry_stays(tmp_path, made):
    entry, folder = made
    store = FolderStore(tmp_path / "store")
    first = store.put(entry, folder)
    assert store.put(entry.model_copy(update={"result": {"count": 2}}), folder) == first


def test_an_altered_and_a_missing_file_are_named(tmp_path, made):
    entry, folder = made
    store = FolderStore(tmp_path / "store")
    store.put(entry, folder)
    inside = tmp_path / "store" / "artifacts" / "set" / entry.key / "blocks" / "0"
    inside.write_bytes(b"\x00\x02")
    with pytest.raises(DataCorrupt, match="blocks/0 has sha256"):
        store.fetch("set", entry.key)
    inside.unlink()
    with pytest.raises(DataMissing, match="lacks its file blocks/0"):
        store.fetch("set", entry.key)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(DataMissing, match="has no teacher bbbb"):
        FolderStore(tmp_path).fetch("teacher", "b" * 64)
    with pytest.raises(DataMissing, match="has no teacher bbbb"):
        existing(FolderStore(tmp_path), "teacher", "b" * 64)


def test_a_store_that_cannot_be_written_is_said(tmp_path, made):
    entry, folder = made
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="Cannot write to"):
        FolderStore(tmp_path / "store").put(entry, folder)


def test_a_disk_that_fills_up_while_files_are_copied_is_said(tmp_path, made, monkeypatch):
    def full(*_arguments: object, **_options: object) -> None:
        raise shutil.Error([("from", "to", "[Errno 28] No space left on device")])  # as copytree collects them

    entry, folder = made
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(StoreError, match=r"Cannot write to .*No space left on device"):
        FolderStore(tmp_path / "store").put(entry, folder)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "entry.json"
    write_atomically(path, "old")

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_permissions_obey_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new" / "file.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~mask
