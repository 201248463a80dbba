"""What every object store has to do; a subclass has a fixture ``store`` that is empty."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tracking.ledger.object_store import ObjectStore


class ObjectStoreSuite:
    """Run as a test class of its own for each kind of store."""

    def test_an_object_comes_back_and_can_be_removed(self, store: ObjectStore) -> None:
        name = "by-key/set/a.json"
        assert store.get(name) is None
        assert store.put(name, b"one")
        assert store.put(name, b"two")
        assert store.get(name) == b"two"
        assert not store.put(name, b"three", only_if_absent=True)
        assert store.get(name) == b"two"
        store.delete(name)
        store.delete(name)
        assert store.get(name) is None

    def test_names_start_with_the_prefix(self, store: ObjectStore) -> None:
        for name in ("by-key/set/ab1.json", "by-key/set/ab2.json", "by-key/set/b.json", "by-key/teacher/ab.json"):
            store.put(name, b"")
        assert set(store.names("by-key/set/ab")) == {"by-key/set/ab1.json", "by-key/set/ab2.json"}
        assert len(list(store.names("by-key/"))) == len(list(store.names())) == 4
        assert list(store.names("nowhere/")) == []

    def test_entries_have_sizes_and_times(self, store: ObjectStore) -> None:
        store.put("a/1", b"12345")
        store.put("b/1", b"")
        [entry] = store.entries("a/")
        assert (entry.name, entry.size) == ("a/1", 5)
        assert abs(entry.changed - time.time()) < 120

    def test_many_at_once(self, store: ObjectStore) -> None:
        for number in range(5):
            store.put(f"many/{number}", b"%d" % number)
        wanted = [f"many/{number}" for number in range(7)]
        assert store.get_many(wanted) == {f"many/{number}": b"%d" % number for number in range(5)}
        assert store.get_many([]) == {}

    def test_files_go_up_and_come_down(self, store: ObjectStore, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(bytes(range(256)) * 64)
        store.upload("files/set/large.bin", source)
        assert store.download("files/set/large.bin", target)
        assert target.read_bytes() == source.read_bytes() == store.get("files/set/large.bin")
        assert not store.download("files/set/none.bin", tmp_path / "none")
        assert not (tmp_path / "none").exists()
        assert list(store.names()) == ["files/set/large.bin"], "nothing is left of the transfer"

    def test_an_address_opens_the_same_store(self, store: ObjectStore) -> None:
        from tracking.ledger.object_store import is_direct, open_objects

        store.put("deep/er/a.txt", b"here")
        assert is_direct(store.url("deep")) and store.has_credentials()
        assert open_objects(store.url("deep")).get("er/a.txt") == b"here"
        assert open_objects(store.url()).get("deep/er/a.txt") == b"here"

    def test_of_many_writers_at_most_one_wins(self, store: ObjectStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: store.put("x/y.json", b"%d" % n, only_if_absent=True), range(16)))
        assert store.get("x/y.json") in {b"%d" % number for number, yes in enumerate(won) if yes}
        assert not store.put("x/y.json", b"late", only_if_absent=True)
        assert list(store.names("x/")) == ["x/y.json"]
