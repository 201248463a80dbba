"""MLflow's database: made complete in one step, and the states in which MLflow cannot use it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shlex
import sqlite3
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rd3.errors import TrackingError
from tracking.ledger.faults import Fault, without_password
from tracking.runs.faults import sqlite_fault

_NEWER = Fault(
    "{database} was used with a newer MLflow than the installed {installed} (schema {found}).",
    "install that version: pip install --upgrade mlflow",
)
_OLDER = Fault(
    "{database} was made by an older MLflow than the installed {installed} (schema {found}).",
    "back it up, then run: mlflow db upgrade {uri}",
)
_HALF_MADE = Fault(
    "{database} is incomplete, because the command that created it was killed; it has no runs.",
    "delete it, and it is created again: rm {path}",
)
_DAMAGED = Fault(
    "{database} has {runs} runs but no complete schema, because an upgrade or its creation was killed.",
    "restore a backup of it, or move it away: `rd3 artifacts rebuild` reads results from the artifacts",
)


def create_sqlite(path: Path) -> None:
    """Create MLflow's tables if there is no database at ``path``; a killed process leaves a complete one or none.

    MLflow itself creates about 60 tables one after the other, and cannot use what is left of a killed attempt.
    """
    if _is_made(path):
        return
    with _locked(path.parent) as locked:
        if _is_made(path):
            return
        if locked:
            for left in path.parent.glob(f".{path.name}.new-*"):
                left.unlink(missing_ok=True)
        aside = path.with_name(f".{path.name}.new-{uuid.uuid4().hex}")
        try:
            aside.touch()  # with the permissions that the umask allows; SQLite's own never let a group write
            _create_tables(aside)
            if path.exists():  # an empty file
                os.replace(aside, path)
            else:
                _move(aside, path, locked)
        finally:
            aside.unlink(missing_ok=True)


def _move(aside: Path, path: Path, locked: bool) -> None:
    """Give a file its name unless another machine was faster; under the lock also where there are no hard links."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError as error:  # of FAT, for example
        if not locked:
            raise TrackingError(
                f"Cannot create the MLflow database {path}: its file system has neither hard links nor locks "
                f"({error.strerror}).",
                "set RD3_HOME to a folder on another file system",
            ) from None
        os.replace(aside, path)


def _is_made(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _create_tables(path: Path) -> None:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    try:
        utils._initialize_tables(engine)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """An exclusive lock on a folder, which ends with its holder; False where the file system has no such locks."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@functools.cache
def revisions() -> tuple[frozenset[str], str]:
    """(all schema revisions that the installed MLflow knows, the latest one), without importing it."""
    spec = importlib.util.find_spec("mlflow")
    roots = (spec.submodule_search_locations if spec is not None else None) or []
    texts = [
        script.read_text(encoding="utf-8")
        for root in roots
        for script in Path(root, "store", "db_migrations", "versions").glob("*.py")
    ]
    known = [found[1] for text in texts if (found := re.search(r"^revision\s*=\s*[\"'](\w+)", text, re.M))]
    before = {found[1] for text in texts if (found := re.search(r"^down_revision\s*=\s*[\"'](\w+)", text, re.M))}
    latest = [revision for revision in known if revision not in before]
    return frozenset(known), latest[0] if latest else ""


def schema_fault(uri: str, found: str | None, path: Path | None = None, runs: int = 0) -> Fault:
    """The fault of a database whose schema revision is ``found`` (None: none is recorded), not the latest.

    ``path``: the file of an SQLite database, ``runs``: how many it has.
    """
    shown = without_password(uri) if path is None else path
    about = {"database": f"The MLflow database {shown}", "installed": version("mlflow"), "found": found}
    if found is not None and found not in revisions()[0]:
        return _NEWER.about(**about)
    if path is not None and (found is None or not _has_all_tables(path)):
        incomplete = _DAMAGED if runs else _HALF_MADE
        return incomplete.about(**about, runs=runs, path=shlex.quote(str(path)))
    return _OLDER.about(**about, uri=shlex.quote(uri))


def check_sqlite_schema(database: sqlite3.Connection, uri: str, path: Path) -> None:
    """Raise :class:`TrackingError` for a schema of another version.

    An older one that lacks tables is accepted: MLflow then migrates it by itself, and refuses one that has them all.
    """
    found, (known, latest) = _revision(database), revisions()
    if found is None or found == latest or not known:
        return
    if found not in known or _has_all_tables(path):
        raise schema_fault(uri, found, path, _count_runs(database)).error(TrackingError, TrackingError)


def sqlite_schema_fault(uri: str, path: Path) -> Fault | None:
    """The fault of a database that MLflow cannot use; None if its schema is as it should be."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as database:
            found, runs = _revision(database), _count_runs(database)
    except sqlite3.Error as error:  # locked or damaged, so what it has is unknown
        return sqlite_fault(error, path)
    if found == revisions()[1] and _has_all_tables(path):
        return None
    return schema_fault(uri, found, path, runs)


def _revision(database: sqlite3.Connection) -> str | None:
    """The recorded schema revision; None if there is none."""
    found: str | None = _first_value(database, "alembic_version", "version_num")
    return found


def _count_runs(database: sqlite3.Connection) -> int:
    """Takes long where there are many."""
    return _first_value(database, "runs", "count(*)") or 0


def _first_value(database: sqlite3.Connection, table: str, column: str) -> Any:
    """None without the table, too; raises for a database that cannot be read."""
    named = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if database.execute(named, (table,)).fetchone() is None:
        return None
    row = database.execute(f"SELECT {column} FROM {table}").fetchone()
    return row[0] if row else None


def _has_all_tables(path: Path) -> bool:
    """Whether the tables of the installed MLflow are there; if not, it runs the migrations itself."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    try:
        return bool(utils._all_tables_exist(engine))
    finally:
        engine.dispose()
