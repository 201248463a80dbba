"""Files behind an entry: in place and verified on this machine; what is damaged or gone is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd3.errors import DataCorrupt, DataMissing
from rd3.store import Entry, sha256_files
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
    artifacts.verify(entry, tmp_path / "cache")
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
        artifacts.verify(entry, tmp_path / "cache")


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
