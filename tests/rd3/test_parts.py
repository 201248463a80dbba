"""Results in a few files: what comes out is what went in, whenever it is looked at, and nothing else comes in."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from pathlib import Path

import pytest
from small_recipes import a_set

from rd3.errors import BadValue, DataCorrupt, DataMissing, StoreError
from rd3.kept_students import without_student
from rd3.parts import PART_BYTES, PARTS, SHARD_BYTES, Collector, holds_parts, unpack
from rd3.store import STUDENT, Entry, FolderStore, sha256_files

SMALL = {"part_bytes": 20_000, "shard_bytes": 8_000}


def add(store: Path, seed: int, sizes: dict[str, int]) -> Entry:
    """An entry with files of these sizes and random content."""
    recipe, folder = a_set(seed), store.parent / f"made{seed}"
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.Random(f"{seed} {name}").randbytes(size))
    plain = recipe.model_dump(mode="json")
    entry = Entry(kind="set", key=recipe.key, recipe=plain, result={"count": seed}, files=sha256_files(folder))
    return FolderStore(store).put(entry, folder)


def test_the_limits_are_those_of_the_machine():
    assert PARTS + 2 <= 8 and PART_BYTES <= 16 * 10**6 and SHARD_BYTES + 10_000 <= PART_BYTES


def test_a_store_goes_into_parts_and_comes_out_again(tmp_path):
    store = tmp_path / "store"
    entries = [add(store, 0, {"a": 100, "blocks/b": 30_000}), add(store, 1, {"c": 0}), add(store, 2, {"d": 7_000})]
    collector = Collector(store, tmp_path / "out", **SMALL)
    assert collector.collect() == 3
    paths = sorted((tmp_path / "out").iterdir())
    assert len(paths) > 1 and all(path.stat().st_size <= SMALL["part_bytes"] for path in paths)
    assert holds_parts(tmp_path / "out") and not holds_parts(tmp_path)
    found = unpack(tmp_path / "out", tmp_path / "back")
    assert (found.entries, found.lacking) == (3, {})
    for entry in entries:
        assert FolderStore(tmp_path / "back").find("set", entry.key) == entry
        FolderStore(tmp_path / "back").fetch("set", entry.key)
    assert sha256_files(tmp_path / "back") == sha256_files(store), "nothing else, and no scratch"


def test_every_state_on_the_way_can_be_read_and_full_parts_stay_as_they_are(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    collector = Collector(store, out, **SMALL)
    before: dict[str, str] = {}
    for seed in range(8):
        add(store, seed, {"pixels": 6_000})
        assert collector.collect() == 1
        assert unpack(out, tmp_path / f"back{seed}").entries == seed + 1
        now = sha256_files(out)
        assert all(now[name] == digest for name, digest in sorted(before.items())[:-1])
        before = now
    assert collector.collect() == 0
    assert sha256_files(out) == before


def test_what_was_there_before_does_not_go_back_and_what_does_not_fit_is_named(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    old = add(store, 0, {"a": 10})
    known = set((store / "by-key" / "set").iterdir())
    collector = Collector(store, out, parts=2, known=known, **SMALL)
    large, small = add(store, 1, {"weights": 50_000}), add(store, 2, {"b": 10})
    assert collector.collect() == 1
    assert collector.left_out == {f"set {large.key}": "0.1 MB do not fit into 2 files"}
    back = FolderStore(unpack(out, tmp_path / "back").store)
    assert [back.find("set", one.key) is not None for one in (old, large, small)] == [False, False, True]


def test_a_student_that_does_not_fit_stays_and_its_result_comes(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    collector = Collector(store, out, parts=4, **SMALL)
    entries = [add(store, seed, {"result.json": 100, STUDENT: 20_000}) for seed in range(3)]
    entries.append(add(store, 3, {"images": 15_000}))
    assert collector.collect() == 4
    reason = "its student of 0.0 MB does not fit, the result does"
    assert collector.left_out == {f"set {one.key}": reason for one in entries[1:3]}
    found = unpack(out, tmp_path / "back")
    back = FolderStore(found.store)
    assert (found.entries, found.lacking) == (4, {})
    expected = [entries[0], *map(without_student, entries[1:3]), entries[3]]
    assert [back.find("set", one.key) for one in entries] == expected
    for one in entries:
        back.fetch("set", one.key)


@pytest.mark.parametrize("name", ["weights (1).bin", "größe.bin", "blocks/a b", "x" * 210])
def test_a_file_name_that_parts_do_not_take_is_named_and_leaves_the_others(tmp_path, name):
    store, out = tmp_path / "store", tmp_path / "out"
    collector = Collector(store, out, **SMALL)
    odd, plain = add(store, 0, {name: 10}), add(store, 1, {"a": 10})
    assert collector.collect() == 1
    [(refused, reason)] = collector.left_out.items()
    assert refused == f"set {odd.key}" and repr(f"artifacts/set/{odd.key}/{name}") in reason
    back = FolderStore(unpack(out, tmp_path / "back").store)
    assert back.find("set", odd.key) is None and back.find("set", plain.key) == plain


def test_notes_come_along_in_their_last_state(tmp_path):
    store, out, notes = tmp_path / "store", tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    (notes / "speed.csv").write_text("case,ratio\n")
    collector = Collector(store, out, notes=notes, **SMALL)
    assert collector.collect() == 0
    (notes / "speed.csv").write_text("case,ratio\nstep,3.1\n")
    (notes / "huge.bin").write_bytes(bytes(50_000))
    add(store, 0, {"a": 10})
    collector.collect()
    unpack(out, tmp_path / "back")
    assert (tmp_path / "back" / "notes" / "speed.csv").read_text().endswith("step,3.1\n")
    assert not (tmp_path / "back" / "notes" / "huge.bin").exists()


def test_what_could_not_be_collected_is_tried_again(tmp_path, monkeypatch):
    store, out = tmp_path / "store", tmp_path / "out"
    collector = Collector(store, out, **SMALL)
    entries = [add(store, seed, {"a": 7_000, "b": 7_000}) for seed in range(3)]

    def full(_source: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rd3.parts._collect.os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            collector.collect()
    assert collector.collect() == 2, "the first one, which fitted, waited to be written"
    hidden = store / "artifacts" / "set" / add(store, 3, {"a": 10}).key
    hidden.rename(tmp_path / "hidden")
    entries.append(add(store, 4, {"a": 10}))
    with pytest.raises(FileNotFoundError):
        collector.collect()
    back = FolderStore(unpack(out, tmp_path / "back").store)
    assert [back.find("set", one.key) for one in entries] == entries
    (tmp_path / "hidden").rename(hidden)
    assert collector.collect() == 1 and unpack(out, tmp_path / "again").entries == 5


def test_an_entry_of_which_a_part_is_lost_is_named_and_the_others_are_taken(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    large = add(store, 0, {"weights": 30_000})
    collector = Collector(store, out, **SMALL)
    collector.collect()
    small = add(store, 1, {"a": 12_000})
    collector.collect()
    first = min(out.iterdir())
    first.unlink()
    found = unpack(out, tmp_path / "back")
    assert found.lacking == {f"set {large.key}": "its file weights is missing or incomplete"}
    assert FolderStore(found.store).find("set", small.key) is not None
    assert FolderStore(found.store).find("set", large.key) is None


def part(folder: Path, members: dict[str, bytes], *, index: list[dict] | None = None, compress: bool = False) -> Path:
    """A part written by somebody else."""
    folder.mkdir()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    told = [
        {"path": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in members.items()
    ]
    with zipfile.ZipFile(folder / "results-1.zip", "w", method) as opened:
        opened.writestr("parts.json", json.dumps({"format": 1, "members": told if index is None else index}))
        for name, content in members.items():
            opened.writestr(name, content)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "artifacts/set/../../../outside",
        "artifacts/set/" + "0" * 64 + "/../../x",
        "artifacts/set/" + "0" * 64 + "/.hidden",
        "artifacts/set/short/file",
        "artifacts/thing/" + "0" * 64 + "/file",
        "by-key/set/" + "0" * 64,
        "anything",
        "notes",
        "notes/a\\b",
        "notes//a",
    ],
)
def test_a_place_outside_a_store_is_refused(tmp_path, name):
    folder = part(tmp_path / "in", {name: b"x"})
    with pytest.raises(DataCorrupt, match="is not a path in a store"):
        unpack(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_a_member_that_is_a_file_and_a_folder_is_refused(tmp_path, order):
    folder = part(tmp_path / "in", dict([("notes/a", b"/tmp"), ("notes/a/b", b"x")][::order]))
    with pytest.raises(DataCorrupt, match="hold 'a' both as a file and as a folder"):
        unpack(folder, tmp_path / "back")


def test_compressed_members_and_members_that_are_not_listed_are_refused(tmp_path):
    with pytest.raises(DataCorrupt, match=r"parts.json is compressed or has another size than declared"):
        unpack(part(tmp_path / "bomb", {"notes/a": bytes(10**6)}, compress=True), tmp_path / "back")
    with pytest.raises(DataCorrupt, match=r"its members are not those of parts.json"):
        unpack(part(tmp_path / "more", {"notes/a": b"x"}, index=[]), tmp_path / "back")
    wrong = [{"path": "notes/a", "sha256": "0" * 64, "size": 1}]
    with pytest.raises(DataCorrupt, match="the sha256 of notes/a differs"):
        unpack(part(tmp_path / "wrong", {"notes/a": b"x"}, index=wrong), tmp_path / "back")


def test_altered_and_cut_files_are_refused(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out"
    add(store, 0, {"weights": 5_000})
    Collector(store, out, **SMALL).collect()
    [path] = out.iterdir()
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]):
        path.write_bytes(broken)
        with pytest.raises(DataCorrupt, match=r"results-1.zip"):
            unpack(out, tmp_path / "back")


def test_names_that_are_not_utf8_are_refused(tmp_path):
    folder = part(tmp_path / "in", {"notes/\N{SNOWMAN}": b"x"}, index=[])
    [path] = folder.iterdir()
    path.write_bytes(path.read_bytes().replace("\N{SNOWMAN}".encode(), b"\xff\xff\xff"))
    with pytest.raises(DataCorrupt, match=r"results-1.zip: the file is damaged"):
        unpack(folder, tmp_path / "back")


def test_an_entry_that_is_not_what_its_name_says_is_refused(tmp_path):
    recipe = a_set()
    entry = Entry(kind="set", key=recipe.key, recipe=recipe.model_dump(mode="json"), result={})
    content = entry.model_dump_json().encode()
    folder = part(tmp_path / "in", {f"by-key/set/{'0' * 64}.json": content})
    with pytest.raises(DataCorrupt, match=f"holds the entry set {recipe.key[:12]}"):
        unpack(folder, tmp_path / "back")
    outside = entry.model_copy(update={"files": {"../../x": "0" * 64}}).model_dump_json().encode()
    with pytest.raises(DataCorrupt, match=r"by-key.* cannot be read"):
        unpack(part(tmp_path / "in2", {f"by-key/set/{recipe.key}.json": outside}), tmp_path / "back2")


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    folder = part(tmp_path / "in", {"notes/a": b"x"})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        StoreError, match=r"^Cannot write to .*back: No space left on device\. Fix: free space .* TMPDIR"
    ):
        unpack(folder, tmp_path / "back")


def test_no_parts_and_parts_of_a_later_version_are_said(tmp_path):
    with pytest.raises(DataMissing, match="holds no parts"):
        unpack(tmp_path, tmp_path / "back")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "results-1.zip", "w") as opened:
        opened.writestr("parts.json", json.dumps({"format": 2, "members": []}))
    with pytest.raises(BadValue, match="has format 2, this version reads 1"):
        unpack(tmp_path / "in", tmp_path / "back")
