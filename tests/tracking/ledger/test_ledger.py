"""The ledger: what is done, found by key, and never overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rd3.errors import BadValue, DataCorrupt, UnknownName
from rd3.store import Entry, FolderStore
from tracking.ledger.ledger import Ledger, former_name


def entry(key: str, kind: str = "set", **more: object) -> Entry:
    return Entry(kind=kind, key=key, recipe={"kind": kind}, result={"top1_pct": 12.5}, **more)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "artifacts"))


def test_the_first_entry_of_a_key_stands(ledger: Ledger, tmp_path: Path) -> None:
    first = entry("a1" * 32, files={"images.npz": "00"}, made={"host": "one"}).sealed()
    assert ledger.add(first) == first
    assert ledger.add(entry("a1" * 32, made={"host": "two"})) == first
    assert ledger.find("set", "a1" * 32) == first
    assert ledger.find("teacher", "a1" * 32) is None
    assert (tmp_path / "artifacts" / "by-key" / "set" / f"{'a1' * 32}.json").is_file()


def test_keys_are_listed_by_kind_and_can_be_forgotten(ledger: Ledger) -> None:
    assert ledger.keys("set") == set()
    for key in ("a1", "b2"):
        ledger.add(entry(key * 32))
    ledger.add(entry("c3" * 32, kind="teacher"))
    assert ledger.keys("set") == {"a1" * 32, "b2" * 32}
    ledger.forget("set", "a1" * 32)
    assert ledger.keys("set") == {"b2" * 32}
    assert ledger.find("set", "a1" * 32) is None


def test_many_at_once(ledger: Ledger) -> None:
    kept = [ledger.add(entry(f"{number:064x}", kind="evaluation")) for number in range(20)]
    asked = [f"{number:064x}" for number in range(10, 30)]
    assert ledger.find_many("evaluation", asked) == {found.key: found for found in kept[10:]}
    assert ledger.find_many("evaluation", []) == {}


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"null"])
def test_a_damaged_former_key_is_one_sentence(ledger: Ledger, raw: bytes) -> None:
    ledger.objects.put(former_name("set", "a1" * 32), raw)
    with pytest.raises(DataCorrupt, match=r"Former key .*a1\.json cannot be read\. Fix: remove this file"):
        ledger.former_keys("set")


def test_keys_may_be_shortened(ledger: Ledger) -> None:
    for key in ("abc1" + "0" * 60, "abc2" + "0" * 60, "d" * 64):
        ledger.add(entry(key))
    assert ledger.resolve("set", "d") == "d" * 64
    assert ledger.resolve("set", " ABC2 ") == "abc2" + "0" * 60
    with pytest.raises(BadValue, match=r"abc is the start of 2 keys: set abc100000, set abc200000\."):
        ledger.resolve("set", "abc")
    with pytest.raises(UnknownName, match=r"has no set e1"):
        ledger.resolve("set", "e1")
    with pytest.raises(BadValue, match=r"'\.\./x' is not the start of a key"):
        ledger.resolve("set", "../x")
    with pytest.raises(BadValue, match="not the start of a key"):
        ledger.resolve("set", "")


def test_a_key_of_any_kind_may_be_shortened(ledger: Ledger) -> None:
    ledger.add(entry("abc1" + "0" * 60))
    ledger.add(entry("abc1" + "f" * 60, kind="teacher"))
    assert ledger.resolve_any("ABC1F") == ("teacher", "abc1" + "f" * 60)
    with pytest.raises(BadValue, match=r"abc1 is the start of 2 keys: teacher abc1ffffff, set abc1000000\."):
        ledger.resolve_any("abc1")
    listing = "`rd3 teacher list`, `rd3 plan GRID --all`, `rd3 diffusion list`, `rd3 set list`"
    with pytest.raises(UnknownName, match=rf"has no key e1\. Fix: see {listing}"):
        ledger.resolve_any("e1")


def test_a_kind_that_does_not_exist(ledger: Ledger) -> None:
    with pytest.raises(UnknownName, match=r"Unknown kind of recipe 'sets'\. Fix: did you mean 'set'"):
        ledger.keys("sets")


def test_a_damaged_entry_is_named(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(entry("a1" * 32))
    path = tmp_path / "artifacts" / "by-key" / "set" / f"{'a1' * 32}.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataCorrupt, match=f"{path} cannot be read: .*Fix: `rd3 artifacts verify --forget`"):
        ledger.find("set", "a1" * 32)


def test_roles_are_names_that_users_give(ledger: Ledger) -> None:
    assert ledger.role("cifar10", "mine") is None
    ledger.set_role("cifar10", "mine", {"network": "resnet18"})
    ledger.set_role("cifar10", "mine", {"network": "resnet50"})
    with pytest.raises(BadValue, match="Role mine of cifar10 is a teacher and cannot become a backbone"):
        ledger.set_role("cifar10", "mine", {"kind": "backbone"})
    ledger.set_role("my/set", "timm:vit", {"network": "timm:vit"})
    assert ledger.role("cifar10", "mine") == {"network": "resnet50"}
    assert set(ledger.roles()) == {("cifar10", "mine"), ("my/set", "timm:vit")}
    ledger.objects.put("roles/cifar10/mine.json", b"[]")
    with pytest.raises(DataCorrupt, match=r"Role .*/roles/cifar10/mine.json cannot be read\. Fix: delete that file"):
        ledger.role("cifar10", "mine")
    ledger.set_role("cifar10", "mine", {"network": "resnet18"})
    assert ledger.role("cifar10", "mine") == {"network": "resnet18"}


def test_the_ledger_needs_neither_mlflow_nor_boto3_nor_torch() -> None:
    code = (
        "import sys, tempfile; from tracking.store import TrackedStore; from tracking.ledger.ledger import Ledger;"
        "Ledger(tempfile.mkdtemp()).keys('set');"
        "print([name for name in ('mlflow', 'boto3', 'torch', 'pandas') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_copies_that_a_file_service_made_are_no_entries(ledger: Ledger, tmp_path: Path) -> None:
    key = "a1" * 32
    ledger.add(entry(key))
    folder = tmp_path / "artifacts" / "by-key" / "set"
    for name in (f"{key} 2", f"{key}.sync-conflict-20261127-101010-ABC", f"{key} (host's conflicted copy)"):
        (folder / f"{name}.json").write_bytes((folder / f"{key}.json").read_bytes())
    assert ledger.keys("set") == {key}
    assert ledger.resolve_any("a1a1") == ("set", key)
    assert FolderStore(tmp_path / "artifacts").names() == [("set", key)]
