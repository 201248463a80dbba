"""``rd3 export-results`` and ``rd3 import-results``: stores and studies, and what is neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_grid import session_in

from rd3.recipe import Data, Recipe, SetRecipe
from rd3.store import Entry, FolderStore, sha256_files
from tracking.store import TrackedStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(home: Path, empty_database: Path) -> Path:
    """A home with a tracking database."""
    home.mkdir()
    shutil.copy(empty_database, home)
    return home


def a_set(ipc: int) -> SetRecipe:
    data = Data(name="digits", fingerprint="f" * 64)
    own = {"method": "random", "version": 1, "settings": {}, "ipc": ipc, "set_seed": 0}
    return SetRecipe(**own, data=data, classes="c" * 64, resolution=32)


SMALL, LARGE = a_set(1), a_set(50)


def put(store: FolderStore, recipe: Recipe, out: Path, **changes: str) -> None:
    out.mkdir()
    (out / "manifest.json").write_text(f"{{}} {recipe.key}")
    (out / "contact_sheet.png").write_bytes(b"picture")
    entry = Entry(
        kind=recipe.kind,
        key=recipe.key,
        recipe=recipe.model_dump(mode="json"),
        result={"count": 10, "generation_process_s": 1.5},
        files=sha256_files(out),
    )
    store.put(entry.model_copy(update=changes), out)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = FolderStore(tmp_path / "store")
    for recipe in (SMALL, LARGE):
        put(made, recipe, tmp_path / recipe.key)
    return made.root


@pytest.fixture
def study(rd3: Run, store: Path, tmp_path: Path) -> Path:
    code, out, _err = rd3("export-results", store, tmp_path / "study", "--study")
    assert code == 0 and "2 new results" in out
    assert "1 results exported without their files: large sets, or networks (--teachers)" in out
    return tmp_path / "study"


def rows(out: str) -> list[str]:
    """Per result, in order: the last word of its line."""
    return [line.split()[-1] for line in out.splitlines() if line.startswith("set ")]


def test_a_study_comes_in_like_the_store_it_was_made_of(rd3: Run, home: Path, store: Path, study: Path) -> None:
    code, out, err = rd3("import-results", study)
    assert (code, rows(out)) == (0, ["True", "True"]), err
    assert "1 imported without files, which the study does not contain: a run that needs them regenerates them" in out
    here, there = TrackedStore(session_in(home)), FolderStore(store)
    for recipe in (SMALL, LARGE):
        changed = {"artifact": None, "run_id": None}
        found = here.find("set", recipe.key)
        assert found.model_copy(update=changed) == there.find("set", recipe.key)
        assert bool(found.artifact) == bool(found.run_id) == (recipe is SMALL)
    assert sha256_files(here.fetch("set", SMALL.key)) == there.find("set", SMALL.key).files
    assert rows(rd3("import-results", study / "results.parquet")[1]) == ["False", "False"]
    assert rd3("artifacts", "verify")[:2] == (0, "1 intact, 0 damaged, 1 without files\n")
    code, _out, err = rd3("artifacts", "fetch", LARGE.key)
    assert code == 2 and "has no artifact.\nFix: run or import it again" in err


def test_files_that_come_later_are_taken(rd3: Run, home: Path, store: Path, study: Path) -> None:
    rd3("import-results", study)
    code, out, _err = rd3("import-results", store)
    assert (code, sorted(rows(out))) == (0, ["False", "True"]) and "without files" not in out
    assert rd3("artifacts", "verify")[1] == "2 intact, 0 damaged\n"


def test_what_came_without_files_goes_on_like_that(rd3: Run, home: Path, study: Path, tmp_path: Path) -> None:
    other = session_in(tmp_path / "other")
    shutil.copytree(home, other.home)
    rd3("import-results", study)
    code, out, err = rd3("artifacts", "push", other.artifacts, "--tracking", other.tracking_uri)
    assert code == 0 and "2 new" in out, err
    there = TrackedStore(other)
    assert there.find("set", SMALL.key).artifact and there.find("set", LARGE.key).artifact is None


def test_a_study_becomes_a_store_for_machines_without_the_platform(rd3: Run, study: Path, tmp_path: Path) -> None:
    code, out, _err = rd3("export-results", study, tmp_path / "again")
    assert code == 0 and "1 new results" in out
    assert FolderStore(tmp_path / "again").names() == [("set", SMALL.key)]


def refused(rd3: Run, home: Path, path: Path) -> str:
    code, _out, err = rd3("import-results", path)
    assert (code, err.count("\n")) == (2, 2), err  # a sentence and a fix
    assert not (home / "artifacts").exists()
    return err


def test_what_holds_no_results_is_said(rd3: Run, home: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "home/mlflow.db"):
        assert "contains no results: neither results.parquet nor by-key" in refused(rd3, home, path)


def test_results_one_level_deeper_are_named(rd3: Run, home: Path, study: Path, tmp_path: Path) -> None:
    outer = tmp_path / "my outer"
    shutil.copytree(study, outer / study.name)
    (outer / "__MACOSX").mkdir()
    said = f"{outer} contains no results, but {outer / study.name} does.\nFix: give '{outer / study.name}'\n"
    assert said in refused(rd3, home, outer)
    code, _out, err = rd3("export-results", outer, tmp_path / "again")
    assert code == 2 and said in err
    assert rd3("export-results", study, outer / "a store")[0] == 0
    shutil.rmtree(outer / study.name)
    assert f"contains no results, but {outer / 'a store'} does." in refused(rd3, home, outer)


def test_a_study_that_means_harm_is_refused(rd3: Run, home: Path, study: Path) -> None:
    path = study / "results.parquet"
    table = pq.read_table(path)

    def altered(change: Callable[[dict], object], copies: int = 1) -> str:
        plain = table.to_pylist()
        entry = json.loads(plain[0]["entry"])
        change(entry)
        plain[0] |= {"kind": entry["kind"], "key": entry["key"], "entry": json.dumps(entry)}
        written = pa.Table.from_pylist(plain[:1] * copies, schema=table.schema)
        pq.write_table(written, path, use_dictionary=False)
        return refused(rd3, home, path)

    assert "is not a relative file name" in altered(lambda entry: entry["files"].update({"../x": "0" * 64}))
    assert "holds the recipe set" in altered(lambda entry: entry["recipe"].update(ipc=7))
    assert "holds the recipe set" in altered(lambda entry: entry.update(key="0" * 64, digest=None))
    assert "Not a recipe: set.ipc" in altered(lambda entry: entry["recipe"].update(ipc="many"))
    assert "twice" in altered(lambda entry: None, copies=2)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a complete Parquet file" in refused(rd3, home, path)
    pq.write_table(pa.table({"image": [b""]}), path)
    assert "holds no results: its columns are image" in refused(rd3, home, path)
