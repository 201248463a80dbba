"""Storage of studies: Optuna's journal file, or a database."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.terminal import printable
from rd3.errors import BadValue, DataCorrupt, StoreError, StoreUnavailable
from rd3.store import write_atomically
from tracking.ledger.faults import has_password, without_password
from tracking.ledger.object_store import folder_errors
from tracking.runs.faults import sqlite_fault
from tracking.runs.reachable import sqlite_file

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL, TRACKING = "journal", "tracking"
_STUDIES = {
    "name": "database of studies",
    "elsewhere": "give another --storage",
    "move": "give a file on another file system as --storage",
    "lost": "and the studies are written anew from it",
    "shared": "--storage postgresql+psycopg2://...",
}
"""What messages say of the studies' SQLite database."""
SCHEMA = "rd3_optuna"
"""Schema of Optuna's tables, separate from MLflow's: both have a table ``alembic_version``."""


def open_storage(place: str, tracking_uri: str, journal: Path) -> BaseStorage:
    """The storage at ``place``: ``journal``, ``tracking`` (the tracking database, if it is PostgreSQL) or a URL.

    The caller holds the sweep's lease, so a lock that a killed driver left on the journal is removed, and a record that
    it left unfinished at the end is cut off.  Raises :class:`DataCorrupt` for damage before the end.
    """
    if place == JOURNAL:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        journal.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{journal}.lock").unlink(missing_ok=True)
        _cut_back(journal)
        return JournalStorage(JournalFileBackend(str(journal)))
    if place == TRACKING:
        if not tracking_uri.startswith("postgresql"):
            raise BadValue(
                f"The tracking server is {without_password(tracking_uri)}, which is not a PostgreSQL database.",
                f"omit --storage {TRACKING}, or give --storage postgresql+psycopg2://...",
            )
        return _database(tracking_uri)
    readable = False
    with contextlib.suppress(ValueError):  # of an address such as postgresql://[::1
        readable = bool(urlsplit(place))
    if not readable or "://" not in place:
        raise BadValue(f"Invalid --storage {without_password(place)}.", f"use {JOURNAL}, {TRACKING} or a database URL")
    if has_password(place):
        raise BadValue(
            f"The URL of --storage {without_password(place)} contains a password, which others here can read.",
            "remove the password and put it into PGPASSWORD or ~/.pgpass",
        )
    if place.startswith("postgres:"):  # an old name, which hosting services still give out
        raise BadValue(f"Invalid --storage {without_password(place)}.", "write postgresql+psycopg2:// at its beginning")
    return _database(place)


def _cut_back(journal: Path) -> None:
    """Cut a journal after its last whole record, and say so; the damaged file is kept beside it.

    A machine that stops, or a full disk, leaves a part of a record, or zeros, at the end.  Optuna would write the next
    record behind it, on the same line, and then read neither.
    """
    if not journal.exists():
        return
    with open(journal, "rb") as stream:
        lines = stream.readlines()
    whole = [_is_whole(line) for line in lines]
    if all(whole):
        return
    first = whole.index(False)
    if any(whole[first:]):
        raise DataCorrupt(
            f"{journal}, the journal of the sweep, is damaged in line {first + 1}, and whole records follow.",
            f"remove it, as the scores of all trials are in the ledger: rm {shlex.quote(str(journal))}; the same "
            "command then writes it again from these, and repeats no training",
        )
    kept = journal.with_name(f"{journal.name}.damaged")
    with folder_errors(journal.parent, "RD3_HOME"):
        write_atomically(kept, b"".join(lines))
        os.truncate(journal, sum(map(len, lines[:first])))
    text = f"{journal} ended in a damaged record, which was cut off after {first} whole ones; the file before: {kept}"
    sys.stderr.write(f"{printable(text)}\n")


def _is_whole(line: bytes) -> bool:
    """Whether a line of a journal is a whole record."""
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _other_version(url: str, text: str) -> StoreError:
    """The error for tables of another version of Optuna, from Optuna's message."""
    made_by = re.search(r"set up by optuna ([^\s)]+)", text)
    state = f"were made by Optuna {made_by[1] if made_by else 'of another version'}, installed is {version('optuna')}"
    if "storage upgrade" in text:
        schema = f"PGOPTIONS=-csearch_path={SCHEMA} " if url.startswith("postgresql") else ""
        fix = f"back them up, then run: {schema}optuna storage upgrade --storage {shlex.quote(url)}"
    else:
        fix = "install that version: pip install --upgrade optuna"
    return StoreError(f"The studies at {without_password(url)} {state}.", fix)


def _database(url: str) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage

    options = {}
    file = sqlite_file(url)
    # `file:` begins a URI of SQLite's own
    if file is not None and not str(file).startswith("file:") and not file.parent.is_dir():
        folder = file.absolute().parent
        raise BadValue(
            f"The folder {folder} of --storage {url} does not exist.", f"mkdir -p {shlex.quote(str(folder))}"
        )
    try:
        if url.startswith("postgresql"):
            options = {"connect_args": {"options": f"-csearch_path={SCHEMA}"}}
            engine = sqlalchemy.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            engine.dispose()
        return RDBStorage(url, engine_kwargs=options)
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        raise _other_version(url, str(error)) from None
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:  # ValueError: an invalid port
        first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if file is not None and not isinstance(error, ImportError):
            raise sqlite_fault(RuntimeError(first), file, _STUDIES).error(StoreError, StoreUnavailable) from None
        fix = "check the address and the database"
        raise StoreError(f"Cannot store the studies at {without_password(url)}: {first}.", fix) from None
