"""Homes that are moved or copied: results are found, and nothing is written into the place they came from."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from small_sets import a_set, put_set
from tiny_grid import session_in

from pipelines.commands.grid import planned as planned_grid
from pipelines.commands.grid import show_in_mlflow, show_plan
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import plan_session
from pipelines.settings import Session
from rd3.datasets import dataset_info
from rd3.store import sha256_files
from tracking.report.results import Results
from tracking.runs.runs import Tracker
from tracking.store import TrackedStore
from tracking.upkeep.relocate import settle

PATHS = os.pathsep.join(sys.path)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def filled(tmp_path: Path, empty_database: Path) -> Path:
    """A home with two sets and the run of a grid, named ``first``."""
    return fill(tmp_path / "first", empty_database)


def fill(home: Path, empty_database: Path) -> Path:
    home.mkdir()
    shutil.copy(empty_database, home)
    store = TrackedStore(session_in(home))
    for seed in range(2):
        put_set(store, a_set(seed), home.parent / "out")
    tracker = Tracker(store.place)
    tracker.grid_run(tracker.experiment("rd3"), "tiny", grid_yaml="name: tiny\n")
    return home


def at(place: Path, home: Path) -> Path:
    """Where the fixtures ``home`` and ``rd3`` expect it."""
    return place.rename(home)


def planned(home: Path) -> list[str]:
    session = session_in(home)
    return [item.status for item in plan_session(expansion_in(session), session).items]


def expansion_in(session: Session) -> Expansion:
    recipes = {recipe.key: recipe for recipe in map(a_set, range(2))}
    return Expansion(recipes=recipes, infos={"digits": dataset_info("digits", session.roots)})


def addresses(home: Path) -> list[str]:
    """Every absolute address in the database of a home."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return [
            value
            for query in (
                "SELECT artifact_location FROM experiments WHERE name = 'rd3'",
                "SELECT artifact_uri FROM runs",
                "SELECT value FROM tags WHERE key IN ('rd3.ledger', 'rd3.files')",
            )
            for (value,) in database.execute(query)
        ]


def a_file(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path = folder / f"set{seed}.pt"
    torch.save((torch.rand(10, 3, 32, 32), torch.arange(10)), path)
    return path


def test_entries_name_files_below_the_root_relative_to_it(filled: Path) -> None:
    paths = [*filled.rglob("by-key/set/*.json"), *filled.rglob("runs/*/artifacts/entry.json")]
    assert len(paths) == 4
    for path in paths:
        stored = json.loads(path.read_text())["artifact"]
        assert stored.startswith("runs/")
        assert (filled / "artifacts" / stored / "manifest.json").is_file()


def test_a_moved_home_keeps_its_results_and_writes_to_itself(rd3: Run, filled: Path, home: Path) -> None:
    before = sha256_files(filled)
    at(filled, home)
    assert planned(home) == ["reuse", "reuse"]
    assert rd3("artifacts", "verify")[:2] == (0, "2 intact, 0 damaged\n")
    assert sha256_files(home) == before

    code, _out, err = rd3("set", "import", a_file(home.parent, 3), "--dataset", "digits")
    assert (code, f"from {filled}/artifacts to {home}/artifacts" in err) == (0, True), err
    assert sha256_files(home)["mlflow.db.before-relocation"] == before["mlflow.db"]
    assert not filled.exists()
    assert [uri for uri in addresses(home) if str(filled) in uri] == []
    assert {uri.removeprefix("file://") for uri in addresses(home) if str(home) not in uri} == set()
    assert rd3("artifacts", "verify")[:2] == (0, "3 intact, 0 damaged\n")

    assert rd3("set", "import", a_file(home.parent, 4), "--dataset", "digits")[2] == ""


def test_a_copied_home_leaves_the_original_as_it_is(rd3: Run, filled: Path, home: Path) -> None:
    before = sha256_files(filled)
    shutil.copytree(filled, home)
    code, _out, err = rd3("set", "import", a_file(home.parent, 3), "--dataset", "digits")
    assert (code, err.count("Files were moved")) == (0, 1)
    assert planned(home) == ["reuse", "reuse"]
    assert len(list((home / "artifacts" / "runs").glob("*/artifacts/set"))) == 3
    assert [uri for uri in addresses(home) if str(filled) in uri] == []
    assert sha256_files(filled) == before
    shutil.rmtree(filled)
    assert rd3("artifacts", "verify")[:2] == (0, "3 intact, 0 damaged\n")


PUBLISH = """
import sys
from pathlib import Path
from pipelines.commands.grid import show_in_mlflow
from tiny_grid import session_in
from tracking.report.results import Results

home = Path(sys.argv[1])
here = session_in(home)
show_in_mlflow("tiny", Results.of([], here.ledger.find), here, {"report.md": home / "reports" / "report.md"})
"""


def test_a_report_is_published_into_the_copy(filled: Path, home: Path) -> None:
    """In a process of its own: MLflow remembers for a process where the files of a run are."""
    before = sha256_files(filled)
    shutil.copytree(filled, home)
    (home / "reports").mkdir()
    (home / "reports" / "report.md").write_text("# tiny\n")
    subprocess.run([sys.executable, "-c", PUBLISH, str(home)], check=True, env=os.environ | {"PYTHONPATH": PATHS})
    assert len(list((home / "artifacts" / "runs").glob("*/artifacts/report/report.md"))) == 1
    assert sha256_files(filled) == before


def test_a_process_that_has_written_to_the_original_writes_to_the_copy(filled: Path, home: Path) -> None:
    """MLflow itself remembers the location of a run by its ID, which both have."""

    def publish(place: Path) -> None:
        here = session_in(place)
        show_in_mlflow("tiny", Results.of([], here.ledger.find), here, {"report.md": reports / "report.md"})

    reports = home.parent / "reports"
    reports.mkdir()
    (reports / "report.md").write_text("first")
    publish(filled)
    before = sha256_files(filled)
    shutil.copytree(filled, home)
    (reports / "report.md").write_text("copy")
    publish(home)
    texts = [
        [file.read_text() for file in place.glob("artifacts/runs/*/artifacts/report/report.md")]
        for place in (filled, home)
    ]
    assert texts == [["first"], ["copy"]]
    assert sha256_files(filled) == before


def test_a_plan_says_that_files_of_an_earlier_version_are_to_be_relocated(
    rd3: Run, filled: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        show_plan(planned_grid(expansion_in(session_in(home)), session_in(home), None, None, 0))
        return capsys.readouterr().err

    made_by_an_earlier_version(filled)
    at(filled, home)
    assert said() == (
        f"2 results are not reused: their files are not found, and were stored at {filled}/artifacts. "
        "Fix: if they were moved, `rd3 artifacts relocate`\n"
    )
    assert rd3("artifacts", "relocate")[0] == 0
    assert said() == ""


def made_by_an_earlier_version(home: Path) -> None:
    """Absolute addresses in ledger and runs, as RD3 0.1 wrote them."""
    for path in [*home.rglob("by-key/set/*.json"), *home.rglob("runs/*/artifacts/entry.json")]:
        entry = json.loads(path.read_text())
        path.write_text(json.dumps(entry | {"artifact": f"file://{home}/artifacts/{entry['artifact']}"}))


def test_absolute_entries_work_where_they_are_and_are_relocated(rd3: Run, filled: Path, home: Path) -> None:
    made_by_an_earlier_version(filled)
    assert planned(filled) == ["reuse", "reuse"]
    shutil.copytree(filled, home)
    before = sha256_files(filled)
    code, out, _err = rd3("artifacts", "relocate")
    assert (code, "2 ledger entries changed" in out) == (0, True), out
    assert sha256_files(filled) == before
    shutil.rmtree(filled)
    assert planned(home) == ["reuse", "reuse"]
    assert rd3("artifacts", "relocate")[1] == "no addresses of another artifact root in the MLflow database\n"


def test_a_ledger_is_rebuilt_after_a_move(rd3: Run, filled: Path, home: Path) -> None:
    at(filled, home)
    shutil.rmtree(home / "artifacts" / "by-key")
    assert rd3("artifacts", "rebuild")[:2] == (0, "2 entries restored\n")
    assert planned(home) == ["reuse", "reuse"]


def test_a_ledger_of_an_earlier_version_is_rebuilt_after_a_move(rd3: Run, filled: Path, home: Path) -> None:
    made_by_an_earlier_version(filled)
    at(filled, home)
    shutil.rmtree(home / "artifacts" / "by-key")
    assert rd3("artifacts", "rebuild")[:2] == (0, "2 entries restored\n")
    assert planned(home) == ["reuse", "reuse"]


def test_another_artifact_root_is_not_a_move(
    rd3: Run, filled: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(filled, home)
    settle(session_in(home))
    before = addresses(home)
    monkeypatch.setenv("RD3_ARTIFACTS", str(home.parent / "other"))
    code, _out, err = rd3("set", "import", a_file(home.parent, 3), "--dataset", "digits")
    assert code == 0
    assert f"experiment 'rd3' are stored at {home}/artifacts, not below {home.parent}/other" in err
    assert [uri for uri in before if uri not in addresses(home)] == []
    assert rd3("artifacts", "verify")[:2] == (0, "1 intact, 0 damaged\n")


def test_a_database_outside_of_the_home_is_changed_on_request_only(
    rd3: Run, filled: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = (filled / "mlflow.db").rename(home.parent / "shared.db")
    at(filled, home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    before = sha256_files(home.parent)["shared.db"]
    (line,) = settle(with_database(home, database))
    assert f"rd3 artifacts relocate --from {filled}/artifacts" in line
    assert sha256_files(home.parent)["shared.db"] == before
    code, out, _err = rd3("artifacts", "relocate", "--from", filled / "artifacts")
    assert (code, "1 experiment, 3 runs changed" in out) == (0, True), out
    assert settle(with_database(home, database)) == []


def with_database(home: Path, database: Path) -> Session:
    return Session(f"sqlite:///{database}", str(home / "artifacts"), home)


def test_one_home_by_two_names_is_not_a_move(filled: Path) -> None:
    (filled.parent / "second").symlink_to(filled)
    assert settle(session_in(filled.parent / "second")) == []


def test_todays_root_is_refused(rd3: Run, filled: Path, home: Path) -> None:
    at(filled, home)
    settle(session_in(home))
    code, _out, err = rd3("artifacts", "relocate", "--from", home / "artifacts")
    assert (code, "is the current artifact root" in err) == (2, True)


def test_what_is_no_former_root_is_refused(rd3: Run, filled: Path, home: Path) -> None:
    at(filled, home)
    for word, status in (("foo", 2), (home.parent / "foo", 0), ("s3://bucket/foo", 0)):
        code, out, err = rd3("artifacts", "relocate", "--from", word)
        refused = (
            f"below {Path.cwd()}/foo, as --from foo is read. Fix: give the former artifact root in full, such as /"
        )
        assert (code, refused in err.replace("\n", " "), "addresses of nothing" in out) == (
            status,
            status == 2,
            status == 0,
        )


def test_a_tracking_server_is_only_advised(
    rd3: Run, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, out, _err = rd3("artifacts", "relocate", "--from", tmp_path / "it's")
    assert code == 0
    statement = "UPDATE runs SET artifact_uri = replace(artifact_uri, 'file://"
    assert statement in out
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE runs (artifact_uri)")
        database.execute("CREATE TABLE experiments (artifact_location)")
        database.execute("CREATE TABLE tags (key, value)")
        old = (tmp_path / "it's").as_uri()
        database.execute("INSERT INTO runs VALUES (?)", (f"{old}/runs/1",))
        tags = {"rd3.ledger": str(tmp_path / "it's"), "rd3.imported": str(tmp_path / "it's"), "rd3.files": f"{old}/f/1"}
        database.executemany("INSERT INTO tags VALUES (?, ?)", tags.items())
        database.executescript(out.partition("Otherwise run: ")[2])
        assert database.execute("SELECT * FROM runs").fetchone() == (f"{(home / 'artifacts').as_uri()}/runs/1",)
        # Without it, the ledger at the new place would not find its runs.
        artifacts = home / "artifacts"
        moved = {"rd3.ledger": str(artifacts), "rd3.files": f"{artifacts.as_uri()}/f/1"}
        assert dict(database.execute("SELECT * FROM tags").fetchall()) == tags | moved
