"""A student is added to an entry only if it is that of the recorded result, and nothing else of the entry changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipes import a_set

from rd3.errors import DataCorrupt, RD3Error
from rd3.kept_students import add_student, adds_student, with_student, without_student
from rd3.store import STUDENT, Entry, FolderStore, sha256_files

RESULT = {"correct": 87, "tested": 100, "final_loss": 0.5, "wall_s": 3.0}


def result_in(folder: Path, by_class: list[int] | None = None, student: bool = False, **figures: Any) -> Entry:
    """An entry with files, as a run leaves them."""
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(RESULT | figures | {"per_class_correct": by_class or [40, 47]}))
    if student:
        (folder / STUDENT).write_bytes(b"weights")
    plain = a_set().model_dump(mode="json")
    files = sha256_files(folder)
    return Entry(kind="set", key=a_set().key, recipe=plain, result=RESULT | figures, files=files, made={"host": "h"})


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    found = FolderStore(tmp_path / "store")
    found.put(result_in(tmp_path / "recorded"), tmp_path / "recorded")
    return found


def test_the_entry_gains_one_file(store: FolderStore, tmp_path: Path):
    recorded = store.find("set", a_set().key)
    again = result_in(tmp_path / "again", student=True, wall_s=9.0)
    kept = add_student(store, again.model_copy(update={"made": {"host": "other"}}), tmp_path / "again")
    assert kept == store.find("set", a_set().key)
    assert without_student(kept) == recorded and adds_student(kept, recorded) and not adds_student(recorded, recorded)
    folder = store.fetch("set", a_set().key)
    assert sha256_files(folder) == kept.files == {**recorded.files, STUDENT: again.files[STUDENT]}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"correct": 86}, "86 correct predictions instead of 87"),
        ({"tested": 90}, "90 tested images instead of 100"),
        ({"final_loss": 0.51}, "a final loss of 0.51 instead of 0.5"),
        ({"by_class": [47, 40]}, "other numbers of correct predictions by class"),
    ],
)
def test_a_student_of_another_result_is_refused(store: FolderStore, tmp_path: Path, other: dict[str, Any], says: str):
    before = sha256_files(store.root)
    again = result_in(tmp_path / "again", student=True, **other)
    with pytest.raises(RD3Error, match=rf"has {says}; the recorded result stays, without weights\. Fix: run it on"):
        add_student(store, again, tmp_path / "again")
    assert sha256_files(store.root) == before


def test_a_loss_summed_in_another_order_is_the_same(tmp_path: Path):
    recorded = result_in(tmp_path / "recorded")
    again = result_in(tmp_path / "again", student=True, final_loss=0.5 * (1 + 1e-9))
    assert with_student(recorded, again, tmp_path / "recorded", tmp_path / "again").result == RESULT


def test_damaged_files_are_not_sealed_again(store: FolderStore, tmp_path: Path):
    again = result_in(tmp_path / "again", student=True)
    (store.root / "artifacts" / "set" / a_set().key / "result.json").write_text("{}")
    with pytest.raises(DataCorrupt):
        add_student(store, again, tmp_path / "again")
