"""Addresses that a move or a copy of RD3's home leaves behind, rewritten to the current artifact root.

The ledger stores addresses below its root relative to it, but MLflow's database has absolute ones, and so have ledgers
of RD3 0.1.  The database is used as SQLite, without MLflow: its import takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rd3.errors import BadValue, RD3Error, TrackingError, TrackingUnavailable
from rd3.store import write_atomically
from tracking.ledger.addresses import is_local, name_below
from tracking.ledger.faults import without_password
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import ObjectStore, is_direct, json_with, local_path, open_objects
from tracking.place import Place
from tracking.runs.faults import sqlite_fault
from tracking.runs.reachable import sqlite_file
from tracking.runs.runs import Tracker
from tracking.store import EXPERIMENT
from tracking.upkeep.health import check_location

RUNS = "/runs"
"""End of the location that RD3 gives to its experiments; the rest is the artifact root."""
_WAIT_S = 10.0
"""Seconds to wait for another process that uses the database."""


class Relocated(NamedTuple):
    """What was rewritten, and where to."""

    old: str
    new: str
    entries: int
    experiments: int
    runs: int
    backup: Path | None

    @property
    def changed(self) -> int:
        """Number of addresses that were rewritten."""
        return self.entries + self.experiments + self.runs

    def line(self) -> str:
        """One sentence for the user."""
        parts = (
            (self.experiments, "experiment", "experiments"),
            (self.runs, "run", "runs"),
            (self.entries, "ledger entry", "ledger entries"),
        )
        counts = [f"{count} {one if count == 1 else many}" for count, one, many in parts if count]
        backup = f"; the database before that: {self.backup}" if self.backup else ""
        what = ", ".join(counts) or "nothing"
        return f"Files were moved: addresses of {what} changed from {shown(self.old)} to {shown(self.new)}{backup}"


def shown(uri: str) -> str:
    """An address as users write it: a path, or the URI of a bucket."""
    return str(local_path(uri)) if is_local(uri) else uri


def settle(place: Place) -> list[str]:
    """Rewrite the addresses of a moved or copied home, which would write to its former place; lines for the user.

    RD3's own database in the home is rewritten, under the ledger's lease.  In any other place, and where the files have
    not come along, an experiment with another location is only named.  Does nothing in a home that has not moved.
    """
    database = sqlite_file(place.tracking_uri)
    if database is None:
        return _server_warning(place)
    if not database.is_file():
        return []
    objects, lines = open_objects(place.artifacts), []
    for old, names in experiments_elsewhere(database, objects).items():
        if database.is_relative_to(place.home) and _came_along(database, old, objects):
            lines.append(relocate(place, old).line())
        else:
            lines.append(
                f"Files of MLflow experiment {', '.join(map(repr, names))} are stored at {shown(old)}, "
                f"not below {place.artifacts}. "
                f"Fix: if they were moved, `rd3 artifacts relocate --from {shlex.quote(shown(old))}`"
            )
    return lines


def _server_warning(place: Place) -> list[str]:
    """A line if RD3's experiment on a server or in its database has a location that does not fit the current root.

    A server decides itself where files are, and only a folder of its machine is wrong.  If it does not answer, its
    first use reports that.
    """
    tracker, found = Tracker(place), None
    with contextlib.suppress(RD3Error):
        tracker.check()
        with tracker.errors():
            found = tracker.client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return []
    location: str = found.artifact_location
    if place.tracking_uri.startswith("http"):
        try:
            check_location(place, location)
            return []
        except TrackingError as error:
            return [f"{error.message} Fix: {error.fix}"]
    objects = open_objects(place.artifacts)
    if not is_direct(location) or _same(location.removesuffix(RUNS), objects):
        return []
    return [
        f"Files of MLflow experiment {EXPERIMENT!r} are stored at {shown(location)}, "
        f"not below {place.artifacts}. Fix: if they were moved, `rd3 artifacts relocate` prints what to change"
    ]


def former_roots(place: Place) -> list[str]:
    """Other artifact roots at which RD3's experiments in an SQLite database store files."""
    database = sqlite_file(place.tracking_uri)
    if database is None or not database.is_file():
        return []
    elsewhere = experiments_elsewhere(database, open_objects(place.artifacts))
    return list(dict.fromkeys(map(shown, elsewhere)))  # a path and its file URI are shown alike


def server_advice(place: Place, roots: list[str]) -> list[str]:
    """What an administrator has to do where the tracking server or database is not SQLite."""
    if sqlite_file(place.tracking_uri) is not None:
        return []
    database, new = without_password(place.tracking_uri), open_objects(place.artifacts).url()
    former, old = (roots[0], open_objects(roots[0]).url()) if roots else ("FORMER_ROOT", "FORMER_URL")
    # By the tag rd3.ledger a ledger finds its runs.
    ledger = (
        f"UPDATE tags SET value = {_literal(place.artifacts)} WHERE key = 'rd3.ledger' AND value = {_literal(former)};"
    )
    files = ("tags", "value", " WHERE key = 'rd3.files'")
    statements = " ".join(
        f"UPDATE {table} SET {column} = replace({column}, {_literal(old + '/')}, {_literal(new + '/')}){where};"
        for table, column, where in (("experiments", "artifact_location", ""), ("runs", "artifact_uri", ""), files)
    )
    return [
        f"{database} was not changed. Stop what uses its database, and make a backup. If its server serves the files "
        f"(mlflow-artifacts:/...), move them to its --artifacts-destination and run: {ledger}",
        f"Otherwise run: {statements} {ledger}",
    ]


def _literal(text: str) -> str:
    """A string literal of SQL."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def experiments_elsewhere(database: Path, objects: ObjectStore) -> dict[str, list[str]]:
    """Other artifact roots (URIs) with the names of RD3's experiments in a database that keep their files there."""
    with _opened(database) as connection:
        if not _has_tables(connection):
            return {}
        found = connection.execute(
            "SELECT name, artifact_location FROM experiments e WHERE artifact_location LIKE '%/runs' "
            "AND (name IN ('rd3', 'rd3 data', 'rd3 sweeps') OR EXISTS (SELECT 1 FROM runs r JOIN tags t "
            "ON t.run_uuid = r.run_uuid WHERE r.experiment_id = e.experiment_id AND t.key = 'rd3.kind'))"
        ).fetchall()
    names: dict[str, list[str]] = defaultdict(list)
    for name, location in found:
        root = location.removesuffix(RUNS)
        if is_direct(root) and not _same(root, objects):
            names[root].append(name)
    return names


def _same(root: str, objects: ObjectStore) -> bool:
    """Whether a URI is the current root, perhaps by another name of the same folder."""
    if objects.folder is None or not is_local(root):
        return root == objects.url()
    path = local_path(root)
    if path == objects.folder:
        return True
    return path.exists() and objects.folder.exists() and path.samefile(objects.folder)


def _came_along(database: Path, old: str, objects: ObjectStore) -> bool:
    """Whether files of the runs are below the current root, or no longer below the old one."""
    if objects.folder is None or not is_local(old):
        return False
    before = open_objects(old)
    with _opened(database) as connection:
        names = [name_below(before, uri or "") for (uri,) in connection.execute("SELECT artifact_uri FROM runs")]
    known = [name for name in names if name is not None]
    if any((objects.folder / name).is_dir() for name in known):
        return True
    return not any((local_path(old) / name).is_dir() for name in known)


def relocate(place: Place, old: str) -> Relocated:
    """Rewrite addresses of ledger and SQLite database below the root ``old`` (a URI or a path) to the current one.

    Addresses of files that are still at the old place, and are not at the new one, are kept.  The database is first
    copied to ``<its name>.before-relocation``.  Raises :class:`StoreError` while a driver uses the ledger.
    """
    ledger = Ledger(place.artifacts)
    before = open_objects(old)
    if _same(before.url(), ledger.objects):
        raise BadValue(f"{shown(old)} is the current artifact root.", "give the former one: --from ADDRESS")
    database = sqlite_file(place.tracking_uri)
    with ledger.lease():
        entries = _relocate_entries(ledger, before)
        found: tuple[int, int, Path | None] = (0, 0, None)
        if database is not None and database.is_file():
            found = _relocate_database(database, before, ledger.objects, place.artifacts)
    return Relocated(before.url(), ledger.objects.url(), entries, *found)


def _moved(before: ObjectStore, objects: ObjectStore, uri: str) -> str | None:
    """The name below the root of what was below the former one; None if it is elsewhere or still there."""
    name = name_below(before, uri)
    stayed = name is not None and _has(before, name) and not _has(objects, name)
    return None if stayed else name


def _has(objects: ObjectStore, name: str) -> bool:
    return objects.folder is not None and (objects.folder / name).exists()


def _relocate_entries(ledger: Ledger, before: ObjectStore) -> int:
    """Make the addresses of entries below a former root relative; returns how many there were."""
    found = ledger.objects.get_many(list(ledger.objects.names("by-key/")))
    changed = 0
    for name, raw in found.items():
        with contextlib.suppress(ValueError):  # `rd3 artifacts verify` reports an entry that cannot be read
            entry = json_with()(raw)
            moved = _moved(before, ledger.objects, entry.get("artifact") or "")
            if moved is not None:
                data = json.dumps(entry | {"artifact": moved}, indent=1, sort_keys=True) + "\n"
                ledger.objects.put(name, data.encode())
                changed += 1
    return changed


def _relocate_database(
    database: Path, before: ObjectStore, objects: ObjectStore, artifacts: str
) -> tuple[int, int, Path | None]:
    """Rewrite the addresses of experiments, runs, tags and dataset sources; (experiments, runs, backup).

    ``artifacts``: the current root as the tag ``rd3.ledger`` has it.
    """

    def address(uri: str | None) -> str | None:
        name = _moved(before, objects, uri or "")
        return uri if name is None else objects.url(name)

    def location(uri: str | None) -> str | None:
        name = name_below(before, uri or "")
        return uri if name is None else objects.url(name)

    def ledger_tag(value: str) -> str:
        is_root = is_direct(value) and (value.startswith("s3://") or is_local(value))
        return artifacts if is_root and open_objects(value).root == before.root else value

    with _opened(database) as connection:
        if not _has_tables(connection):
            return 0, 0, None
        rewrite = partial(_changes, connection)
        changes = [
            rewrite("experiments", "experiment_id", "artifact_location", location),
            rewrite("runs", "run_uuid", "artifact_uri", address),
            rewrite("tags", "run_uuid", "value", ledger_tag, "key = 'rd3.ledger'"),
            rewrite("tags", "run_uuid", "value", address, "key = 'rd3.files'"),
            rewrite("datasets", "dataset_uuid", "dataset_source", partial(_with_uri, change=address)),
        ]
        if not any(rows for _statement, rows in changes):
            return 0, 0, None
        backup = _back_up(connection, database)
        connection.execute("BEGIN IMMEDIATE")
        for statement, rows in changes:
            connection.executemany(statement, rows)
        connection.execute("COMMIT")
    return len(changes[0][1]), len(changes[1][1]), backup


def _changes(
    connection: sqlite3.Connection, table: str, key: str, column: str, change: Any, where: str = "1"
) -> tuple[str, list[tuple[str, Any]]]:
    """An UPDATE statement, and its rows (new value, key) for the values that ``change`` changes."""
    rows = connection.execute(f"SELECT {column}, {key} FROM {table} WHERE {where}").fetchall()
    statement = f"UPDATE {table} SET {column} = ? WHERE {key} = ? AND {where}"
    return statement, [(new, row) for value, row in rows if (new := change(value)) != value]


def _with_uri(text: str, change: Any) -> str:
    """The JSON of a dataset's source in MLflow with its ``uri`` changed."""
    try:
        source = json.loads(text)
        changed = source | {"uri": change(source["uri"])}
    except (ValueError, TypeError, KeyError):
        return text
    return text if changed == source else json.dumps(changed)


def _back_up(connection: sqlite3.Connection, database: Path) -> Path:
    """Copy a database that others may be using; replaces an earlier copy once the new one is complete."""
    target = database.with_name(f"{database.name}.before-relocation")
    try:
        write_atomically(target, connection.serialize())
    except OSError as error:
        raise TrackingError(f"Cannot copy {database} to {target}: {error.strerror}.", "free space there") from None
    return target


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection without implicit transactions; converts SQLite's errors to :class:`TrackingError`."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_WAIT_S, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise sqlite_fault(error, database).error(TrackingError, TrackingUnavailable) from None


def _has_tables(connection: sqlite3.Connection) -> bool:
    """Whether MLflow has created its tables."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {"experiments", "runs", "tags", "datasets"} <= found
