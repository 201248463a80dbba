"""``rd3 artifacts`` over a home with real results: damage is found, garbage goes and nothing else, results travel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_sets import a_set, put_set
from tiny_grid import session_in

from pipelines.engine import trial_log
from rd3.errors import DataCorrupt
from rd3.recipe import SetRecipe
from rd3.store import Entry, sha256_files
from tracking.ledger.ledger import Ledger
from tracking.runs.runs import Tracker
from tracking.store import TrackedStore
from tracking.upkeep.rebuild import rebuild

Run = Callable[..., tuple[int, str, str]]
DAY_S = 86400.0


@pytest.fixture
def home(home: Path, empty_database: Path) -> Path:
    """A home with two sets."""
    home.mkdir()
    shutil.copy(empty_database, home)
    store = TrackedStore(session_in(home))
    for seed in range(2):
        put_set(store, a_set(seed), home.parent / "out")
    return home


@pytest.fixture
def rd3(rd3: Run) -> Run:
    """Runs a command of ``rd3 artifacts``."""
    return partial(rd3, "artifacts")


def entries(home: Path) -> list[Entry]:
    ledger = Ledger(str(home / "artifacts"))
    return [ledger.find("set", key) for key in sorted(ledger.keys("set"))]


def test_results_that_are_newer_than_mlflows_database_are_kept_and_counted(
    rd3: Run, home: Path, empty_database: Path, tmp_path: Path
) -> None:
    """A backup was restored; what the remark says brings the runs back, by MLflow's own tables."""

    def runs(database: Path) -> set[str]:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            return {name for (name,) in opened.execute("SELECT name FROM runs WHERE lifecycle_stage = 'active'")}

    names = runs(home / "mlflow.db")
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", (entries(home)[0].run_id,))
    code, out, _err = rd3("verify")
    assert (code, out.startswith("2 intact, 0 damaged; 1 without a run in MLflow")) == (0, True)
    shutil.copy(empty_database, home)
    code, out, _err = rd3("verify")
    assert (code, out.startswith("2 intact, 0 damaged; 2 without a run in MLflow")) == (0, True)
    other = tmp_path / "other.db"
    shutil.copy(empty_database, other)
    assert rd3("push", str(tmp_path / "there"), "--tracking", f"sqlite:///{other}")[0] == 0
    assert len(names) == 2
    assert runs(other) == names


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def age(folder: Path, seconds: float) -> None:
    """Let everything in a folder look that old."""
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def test_verify_lists_damage_and_forgets_it(rd3: Run, home: Path) -> None:
    assert rd3("verify")[:2] == (0, "2 intact, 0 damaged\n")
    first, second = entries(home)
    manifest = Path(first.artifact.removeprefix("file://")) / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert rd3("verify", second.key[:8])[0] == 0
    code, out, _err = rd3("verify", "--json")
    (row,) = json.loads(out)
    assert (code, row["key"], row["what"]) == (3, first.key[:12], "set random digits ipc1")
    assert "file manifest.json has sha256" in row["damage"]
    assert [entry.key for entry in entries(home)] == [first.key, second.key]

    assert "`rd3 artifacts verify --forget` removes them" in rd3("verify")[1]

    assert rd3("verify", "--grid", "demo")[:2] == (0, "0 intact, 0 damaged\n")

    stale = home / "work" / "set" / first.key
    stale.mkdir(parents=True)
    code, out, _err = rd3("verify", "--forget", "--json")
    assert (code, [row["key"] for row in json.loads(out)]) == (3, [first.key[:12]])
    assert [entry.key for entry in entries(home)] == [second.key]
    assert not stale.exists()
    assert [event["event"] for event in trial_log.events(home, first.key)] == ["forgotten"]
    assert rd3("verify")[:2] == (0, "1 intact, 0 damaged\n")


def test_verify_finds_an_entry_that_holds_another_recipe(rd3: Run, home: Path) -> None:
    first, second = entries(home)
    path = home / "artifacts" / "by-key" / "set" / f"{first.key}.json"
    path.write_text(first.model_copy(update={"recipe": second.recipe}).model_dump_json())
    code, out, _err = rd3("verify")
    assert code == 3
    assert f"holds the recipe set {second.key[:12]}" in out
    path.write_text("{")
    assert "cannot be read" in rd3("verify", first.key[:10])[1]


def forged(home: Path, entry: Entry, **changes: object) -> Entry:
    """An entry changed by hand in the ledger."""
    path = home / "artifacts" / "by-key" / entry.kind / f"{entry.key}.json"
    changed = entry.model_copy(update={"result": entry.result | {"count": 99}, **changes})
    path.write_text(changed.model_dump_json())
    return changed


def test_a_result_changed_in_the_ledger_is_found_by_its_digest(rd3: Run, home: Path) -> None:
    first, _second = entries(home)
    forged(home, first)
    with pytest.raises(DataCorrupt, match="was changed after it was written"):
        Ledger(str(home / "artifacts")).find("set", first.key)
    code, out, _err = rd3("verify", "--forget")
    assert (code, "its digest does not match" in out, "1 intact, 1 damaged" in out) == (3, True, True)
    assert "removed from the ledger" in out
    assert rd3("verify")[:2] == (0, "1 intact, 0 damaged\n")


def test_a_result_changed_together_with_its_digest_is_found_by_its_run(rd3: Run, home: Path) -> None:
    first, _second = entries(home)
    changed = forged(home, first, result=first.result | {"count": 99}, digest=None).sealed()
    forged(home, changed)
    assert Ledger(str(home / "artifacts")).find("set", first.key).result["count"] == 99
    code, out, _err = rd3("verify")
    assert (code, f"MLflow run {first.run_id} have different digests" in out) == (3, True)


def test_a_result_is_compared_with_the_file_it_came_from(rd3: Run, home: Path) -> None:
    out = home.parent / "out"
    out.mkdir()
    (out / "result.json").write_text(json.dumps({"correct": 248, "tested": 340}))
    recipe = a_set(seed=7)
    entry = Entry(kind="set", key=recipe.key, recipe=recipe.model_dump(mode="json"), files=sha256_files(out),
                  result={"correct": 339, "tested": 340, "wall_s": 1.0})  # fmt: skip
    TrackedStore(session_in(home)).put(entry, out)
    code, shown, _err = rd3("verify", recipe.key)
    assert (code, "The entry says correct 339, its result.json says 248." in shown) == (3, True)


def test_entries_of_earlier_versions_have_no_digest(rd3: Run, home: Path) -> None:
    first, second = entries(home)
    forged(home, first, result=first.result, digest=None)
    tracker = Tracker(session_in(home))
    tracker.client.delete_tag(second.run_id, "rd3.digest")
    assert rd3("verify")[:2] == (0, "2 intact, 0 damaged\n")


def test_forgetting_waits_for_the_driver(rd3: Run, home: Path) -> None:
    first, _second = entries(home)
    (Path(first.artifact.removeprefix("file://")) / "manifest.json").unlink()
    with Ledger(str(home / "artifacts")).lease():
        code, _out, err = rd3("verify", "--forget")
    assert (code, "is in use by process" in err) == (5, True)
    assert len(entries(home)) == 2


def litter(home: Path) -> SetRecipe:
    """What attempts and deaths leave behind: a finished run without entry, scratch, deliveries."""
    store = TrackedStore(session_in(home))
    first, second = entries(home)
    recipe = a_set(seed=5)
    put_set(store, recipe, home.parent / "out")
    store.ledger.forget("set", recipe.key)
    store.ledger.objects.put(f"blocks/{first.key}/00000.safetensors", bytes(200))
    store.ledger.objects.put(f"blocks/{recipe.key}/00000.safetensors", bytes(200))
    for name, size in {
        f"work/set/{second.key}/result/a.bin": 30,
        f"work/share/{second.key}-1of2/a.bin": 4,
        f"work/set/{recipe.key}/half.bin": 7000,
        f"cache/set/{first.key}/manifest.json": 500,
        "cache/set/.staging/part": 10,
        "logits/views-setting.logits": 70,
    }.items():
        (home / name).parent.mkdir(parents=True)
        (home / name).write_bytes(bytes(size))
    return recipe


def test_gc_takes_what_nothing_refers_to(rd3: Run, home: Path) -> None:
    recipe = litter(home)
    assert json.loads(rd3("gc", "--json")[1]) == []  # nothing is an hour old
    tracker = Tracker(session_in(home))
    experiment = tracker.client.get_experiment_by_name("rd3").experiment_id
    (run,) = tracker.search([experiment], {"rd3.key": recipe.key})
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET end_time = end_time - ?", (2 * 3600 * 1000,))
    for name in ("blocks", "../work", "../cache", "../logits"):
        age(home / "artifacts" / name, 2 * 3600)
    before = files(home)
    first, second = entries(home)
    found = {
        (one["what"], one["where"].removeprefix("file://")): one["bytes"] for one in json.loads(rd3("gc", "--json")[1])
    }
    run_size = found.pop(("files of a run without ledger entry", run.info.artifact_uri.removeprefix("file://")))
    assert run_size > 1000
    assert found == {
        ("blocks of a set that is done", f"{home}/artifacts/blocks/{first.key}"): 200,
        ("work folder", f"{home}/work/set/{second.key}"): 30,
        ("work folder", f"{home}/work/share/{second.key}-1of2"): 4,
        ("cache", f"{home}/cache/set/{first.key}"): 500,
        ("cache", f"{home}/cache/set/.staging"): 10,
        ("cached teacher logits", f"{home}/logits"): 70,
    }
    assert files(home) == before

    with Ledger(str(home / "artifacts")).lease():
        assert [one["what"] for one in json.loads(rd3("gc", "--json")[1])] == ["blocks of a set that is done"]
    code, out, _err = rd3("gc", "--yes")
    assert (code, "in 7 items deleted" in out) == (0, True)
    gone = {name for name in before - files(home) if not name.startswith("artifacts/leases")}
    own = Path(run.info.artifact_uri.removeprefix("file://")).relative_to(home).as_posix()
    assert gone == {
        f"{own}/set/blocks/00000.bin",
        f"{own}/set/manifest.json",
        f"{own}/entry.json",
        f"artifacts/blocks/{first.key}/00000.safetensors",
        f"work/set/{second.key}/result/a.bin",
        f"work/share/{second.key}-1of2/a.bin",
        f"cache/set/{first.key}/manifest.json",
        "cache/set/.staging/part",
        "logits/views-setting.logits",
    }
    assert rd3("verify")[:2] == (0, "2 intact, 0 damaged\n")
    assert rd3("gc")[1].startswith("0.0 MiB in 0 items")
    assert rebuild(Ledger(str(home / "artifacts")), session_in(home)).added == 0
    age(home / "work", 8 * DAY_S)
    assert [one["bytes"] for one in json.loads(rd3("gc", "--json")[1])] == [7000]


def test_gc_does_not_empty_a_store_whose_ledger_is_lost(rd3: Run, home: Path) -> None:
    shutil.rmtree(home / "artifacts" / "by-key")
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET end_time = end_time - ?", (2 * 3600 * 1000,))
    code, _out, err = rd3("gc", "--yes")
    assert (code, "is empty, but MLflow has finished runs of it." in err) == (2, True)
    entry = next(path for path in home.rglob("entry.json") if path.parent.name == "artifacts")
    entry.rename(home / "aside.json")
    code, out, _err = rd3("rebuild")
    run = entry.parent.parent.name
    assert (code, out) == (0, f"1 entries restored\nskipped: finished run {run} in MLflow has no entry.json\n")
    (home / "aside.json").rename(entry)
    assert rd3("rebuild")[:2] == (0, "1 entries restored\n")
    assert rd3("gc")[1].startswith("0.0 MiB in 0 items")
    assert rd3("verify")[:2] == (0, "2 intact, 0 damaged\n")


def test_fetch_copies_verified_files(rd3: Run, home: Path, tmp_path: Path) -> None:
    first, second = entries(home)
    code, out, _err = rd3("fetch", first.key[:9])
    assert (code, out.strip()) == (0, first.artifact.removeprefix("file://"))
    code, out, _err = rd3("fetch", first.key[:9], second.key, "--out", str(tmp_path / "out"))
    assert code == 0
    for entry, folder in zip((first, second), out.split(), strict=True):
        assert folder == f"{tmp_path}/out/set-{entry.key[:12]}"
        assert sha256_files(Path(folder)) == entry.files
    code, _out, err = rd3("fetch", first.key, "--out", str(tmp_path / "out"))
    assert (code, "already exists." in err) == (2, True)
    for words, said in ((("fetch", "zz"), "'zz' is not the start of a key"), (("fetch", "0" * 64), "has no key 000")):
        code, _out, err = rd3(*words)
        assert (code, said in err) == (2, True)
    next(Path(second.artifact.removeprefix("file://")).glob("blocks/*")).write_bytes(b"")
    code, _out, err = rd3("fetch", second.key, "--out", str(tmp_path / "other"))
    assert (code, "DataCorrupt" in err, (tmp_path / "other").exists()) == (2, True, False)


def test_push_fills_another_ledger_once(rd3: Run, home: Path, tmp_path: Path, empty_database: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(empty_database, other)
    words = ("push", str(other / "artifacts"), "--tracking", f"sqlite:///{other}/mlflow.db")
    Ledger(str(home / "artifacts")).set_role("digits", "mine", {"network": "resnet18"})
    first, _second = entries(home)
    assert rd3(*words, first.key[:8])[:2] == (0, "1 new, 0 already there\n")
    assert rd3(*words)[:2] == (0, "1 new, 1 already there\n")
    for entry in entries(home):
        twin = Ledger(str(other / "artifacts")).find("set", entry.key)
        assert twin.model_copy(update={"artifact": entry.artifact, "run_id": entry.run_id}) == entry
        assert twin.artifact.startswith(f"file://{other}/artifacts/runs/")
        assert Tracker(session_in(other)).client.get_run(twin.run_id).info.status == "FINISHED"
    assert Ledger(str(other / "artifacts")).role("digits", "mine") == {"network": "resnet18"}


def test_push_says_where_it_cannot_go(rd3: Run, home: Path, tmp_path: Path) -> None:
    before = files(home)
    for words, said in [
        (
            (str(home / "artifacts"), "--tracking", f"sqlite:///{tmp_path}/o.db"),
            "is the ledger that already contains the results",
        ),
        (
            (str(tmp_path / "o"), "--tracking", f"sqlite:///{home}/mlflow.db"),
            "its own tracking server or database",
        ),
        ((str(tmp_path / "o"), "--tracking", "http://127.0.0.1:9"), "http://127.0.0.1:9 does not respond"),
        ((str(tmp_path / "o"), "--tracking", "http://127.0.0.1:9"), "or correct --tracking"),
        ((str(tmp_path / "o"), "--tracking", "foo"), "set --tracking to http://..., "),
    ]:
        code, _out, err = rd3("push", *words)
        assert (code, said in err) == (2, True), err
    assert files(home) == before
    assert not (tmp_path / "o").exists()


def test_verify_says_that_digests_were_not_compared(home, rd3, closed_port, monkeypatch):
    """Files are still checked where the tracking server does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("RD3_ARTIFACTS", str(home / "artifacts"))
    code, out, _err = rd3("verify")
    assert (code, "2 intact, 0 damaged" in out) == (0, True), out
    assert "digests not compared with MLflow: " in out


def test_a_home_that_cannot_be_written_is_verified(rd3: Run, home: Path) -> None:
    """As on a read-only mount: files that are in a folder are checked there, without a copy."""
    shutil.rmtree(home / "cache", ignore_errors=True)
    (home / "cache").write_text("in the way of the folder")
    code, out, err = rd3("verify")
    assert (code, err) == (0, "") and f"{len(entries(home))} " in out
    next(Path(entries(home)[0].artifact.removeprefix("file://")).glob("blocks/*")).write_bytes(b"")
    assert rd3("verify")[0] == 3
