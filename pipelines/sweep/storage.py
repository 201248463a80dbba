"""Where studies are kept: Optuna's journal file, or a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rd3.errors import BadValue, StoreError
from tracking.runs.client import without_password

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL, TRACKING = "journal", "tracking"
SCHEMA = "rd3_optuna"
"""Of Optuna's tables beside those of MLflow: both want one called ``alembic_version``."""


def open_storage(place: str, tracking_uri: str, journal: Path) -> BaseStorage:
    """The storage at ``place``: ``journal``, ``tracking`` (the tracking database, if it is PostgreSQL) or a URL.

    The caller holds the sweep's lease, so a lock that a killed driver left on the journal is removed.
    """
    if place == JOURNAL:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        journal.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{journal}.lock").unlink(missing_ok=True)
        return JournalStorage(JournalFileBackend(str(journal)))
    if place == TRACKING:
        if not tracking_uri.startswith("postgresql"):
            raise BadValue(
                f"The tracking server is {without_password(tracking_uri)}, which is no PostgreSQL database.",
                f"leave --storage {TRACKING} out, or give --storage postgresql+psycopg2://...",
            )
        return _database(tracking_uri)
    if "://" not in place:
        raise BadValue(f"Got --storage {place}.", f"say {JOURNAL}, {TRACKING} or a database's URL")
    if urlsplit(place).password:
        raise BadValue(
            f"The URL of --storage {without_password(place)} holds a password, which others on this machine can read.",
            "leave the password out and put it into PGPASSWORD or ~/.pgpass",
        )
    return _database(place)


def _database(url: str) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage

    options = {}
    try:
        if url.startswith("postgresql"):
            options = {"connect_args": {"options": f"-csearch_path={SCHEMA}"}}
            engine = sqlalchemy.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            engine.dispose()
        return RDBStorage(url, engine_kwargs=options)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(
            f"The studies cannot be kept at {without_password(url)}: {first}.", "check the address and the database"
        ) from None
