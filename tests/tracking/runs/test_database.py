"""MLflow's database is there completely or not at all, and a schema of another version has an exact command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from rd3.errors import TrackingError, Unavailable
from tracking.place import Place
from tracking.runs import database
from tracking.runs.runs import Tracker


def tracker_of(path: Path) -> Tracker:
    return Tracker(Place(f"sqlite:///{path}", str(path.parent / "artifacts"), path.parent))


def change(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("complete") / "mlflow.db"
    tracker_of(path).experiment("rd3")
    return path


@pytest.fixture
def copy(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(complete, tmp_path / "mlflow.db"))


def error_of(path: Path) -> TrackingError:
    """The error of the check before a run or, if that passes, of the first access."""
    with pytest.raises(TrackingError) as caught:
        tracker_of(path).check()
        tracker_of(path).experiment("rd3")
    return caught.value


_PROCESS = """
import os, sys
import alembic.command, mlflow.store.tracking.sqlalchemy_store
from pathlib import Path
from tracking.place import Place
from tracking.runs.runs import Tracker
for line in sys.stdin:
    path = Path(line.strip())
    process = os.fork()
    if not process:
        Tracker(Place(f"sqlite:///{path}", str(path.parent / "artifacts"), path.parent)).experiment("rd3")
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""
"""Forks a process per line that does what the first command does; the parent has imported MLflow already."""


@pytest.fixture(scope="module")
def first_commands() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _PROCESS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        _pipe(process.stdin).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def run_killed(process: subprocess.Popen[str], path: Path, after_s: float | None) -> int:
    """Run a first command on a database, and kill it after a while; returns its exit status."""
    _pipe(process.stdin).write(f"{path}\n")
    _pipe(process.stdin).flush()
    child = int(_pipe(process.stdout).readline())
    if after_s is not None:
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return int(_pipe(process.stdout).readline())


def test_a_first_command_killed_at_any_moment(first_commands: subprocess.Popen[str], tmp_path: Path) -> None:
    """Ten kills, spread over the time that an undisturbed one takes: the next command always works."""
    began = time.monotonic()
    assert run_killed(first_commands, tmp_path / "whole.db", None) == 0
    whole_s = time.monotonic() - began
    draws = random.Random(0)
    for number in range(10):
        path = tmp_path / str(number) / "mlflow.db"
        run_killed(first_commands, path, whole_s * (number + draws.random()) / 10)
        tracker = tracker_of(path)
        tracker.check()
        assert tracker.experiment("rd3") == "1"
        assert [left.name for left in path.parent.iterdir()] == ["mlflow.db"], "nothing is left of the killed one"


def test_two_first_commands_at_once(tmp_path: Path) -> None:
    """The second uses the database of the first."""
    path = tmp_path / "mlflow.db"
    barrier, made = threading.Barrier(2), []

    def create() -> None:
        barrier.wait()
        database.create_sqlite(path)
        made.append(path.stat().st_ino)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _number: create(), range(2)))
    assert len(set(made)) == 1
    assert [left.name for left in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_permissions_obey_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    monkeypatch.setattr(database, "_create_tables", lambda path: change(path, "CREATE TABLE runs (run_uuid TEXT)"))
    before = os.umask(mask)
    try:
        database.create_sqlite(tmp_path / "mlflow.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mlflow.db").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    """As FAT on a USB stick."""

    def refuse(*_words: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "home" / "mlflow.db"
    if locks:
        assert tracker_of(path).experiment("rd3") == "1"
    else:
        with pytest.raises(TrackingError, match=rf"database {path}: its file system has neither hard.*set RD3_HOME"):
            tracker_of(path).experiment("rd3")
    assert [left.name for left in path.parent.iterdir()] == ["mlflow.db"] * locks


def test_an_empty_file_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    assert tracker_of(path).experiment("rd3") == "1"


def test_the_revisions_are_those_of_alembic() -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config("sqlite://"))
    known, latest = database.revisions()
    assert known == {script.revision for script in scripts.walk_revisions()}
    assert [latest] == scripts.get_heads()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A database as an older MLflow leaves it: the last migration has not run."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "my data" / "mlflow.db"
    path.parent.mkdir()
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{path}")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revisions[1])
    engine.dispose()
    return path


def test_an_older_schema_and_its_command(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last migration adds no table, MLflow does not run it by itself."""
    monkeypatch.setattr(database, "_has_all_tables", lambda _path: True)
    error = error_of(older)
    assert f"made by an older MLflow than the installed {database.version('mlflow')}" in error.message
    assert not isinstance(error, Unavailable)
    fix = error.fix.partition("then run: ")[2]
    assert fix == f"mlflow db upgrade {shlex.quote(f'sqlite:///{older}')}"
    run_as_typed(fix, older.parent)
    tracker_of(older).check()
    assert tracker_of(older).experiment("rd3") == "1"


def test_an_older_schema_that_mlflow_completes(older: Path) -> None:
    tracker_of(older).check()
    assert tracker_of(older).experiment("rd3") == "1"


def run_as_typed(line: str, folder: Path) -> None:
    shell = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(line, shell=True, check=True, cwd=folder, env=shell, capture_output=True)


def test_a_newer_schema(copy: Path) -> None:
    change(copy, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    error = error_of(copy)
    assert "was used with a newer MLflow than the installed" in error.message and "ffffffffffff" in error.message
    assert "pip install --upgrade mlflow" in error.fix and not isinstance(error, Unavailable)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE alembic_version",
        "DROP TABLE alembic_version; DROP TABLE metrics; DROP TABLE latest_metrics; DROP TABLE inputs",
        "UPDATE alembic_version SET version_num = 'de4033877273'; DROP TABLE scorers",
    ],
)
def test_a_database_half_made_by_an_earlier_version(
    first_commands: subprocess.Popen[str], copy: Path, sql: str
) -> None:
    change(copy, sql)
    error = error_of(copy)
    assert "incomplete" in error.message and "it has no runs" in error.message and not isinstance(error, Unavailable)
    run_as_typed(error.fix.partition(": ")[2], copy.parent)
    assert run_killed(first_commands, copy, None) == 0, "the fix leads to a database that works"


def test_runs_are_never_deleted_by_a_fix(copy: Path) -> None:
    tracker = tracker_of(copy)
    tracker.client.create_run(tracker.experiment("rd3"))
    shutil.copy(copy, copy.with_name("damaged.db"))
    change(copy.with_name("damaged.db"), "DROP TABLE alembic_version")
    error = error_of(copy.with_name("damaged.db"))
    assert "has 1 runs but no complete schema" in error.message and "rm " not in error.fix


def test_a_database_that_cannot_be_read_is_never_deleted_by_a_fix(copy: Path) -> None:
    """A database that is locked, as during an upgrade, or damaged is not reported as one without runs."""
    holder = sqlite3.connect(copy, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        locked = database.sqlite_schema_fault(f"sqlite:///{copy}", copy)
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    copy.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    damaged = database.sqlite_schema_fault(f"sqlite:///{copy}", copy)
    for fault, cause in ((locked, "locked"), (damaged, str(copy))):
        assert fault is not None
        assert cause in fault.message and "no runs" not in fault.message and "rm " not in fault.fix


def test_a_lock_that_is_held(copy: Path) -> None:
    holder = sqlite3.connect(copy, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(Unavailable, match=rf"locked by another process\. Fix: .*`fuser {copy}`"):
            tracker_of(copy).check(0.1)
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def test_the_command_that_restores_an_experiment(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = tracker_of(copy)
    tracker.client.delete_experiment("1")
    error = error_of(copy)
    assert "was deleted in MLflow" in error.message and not isinstance(error, Unavailable)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_as_typed(error.fix.partition(": ")[2], copy.parent)
    assert tracker.experiment("rd3") == "1"
