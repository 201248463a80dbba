"""Lazy import of MLflow, which takes seconds, and conversion of its errors to one-sentence messages."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rd3.errors import RD3Error, StoreError, TrackingError, TrackingUnavailable, is_disk_full
from tracking.ledger.faults import Fault, connection_fault, fault_in, proxy_fault, without_password
from tracking.ledger.s3 import s3_errors
from tracking.ledger.s3_faults import PERMANENT_STATUSES, Refusal, refused
from tracking.place import Place
from tracking.runs.database import schema_fault, sqlite_schema_fault
from tracking.runs.faults import MLFLOW_DATABASE, SQLITE, STATUSES, TEXTS, sqlite_fault, tracking_server
from tracking.runs.reachable import sqlite_path

_NO_HOME = "/nonexistent"
"""Home of users without one, by Debian's convention."""


def quiet_mlflow() -> None:
    """Set environment variables that MLflow reads on import; values set by the user are kept.

    This is the only place where ``tracking`` changes the environment: MLflow has no other interface for these settings.
    """
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        # The client's seven retries take minutes without output; callers use tracking.ledger.retry instead.
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:  # no HOME, and an ID without account, as in containers: MLflow could not be imported
        os.environ["HOME"] = _NO_HOME
    for name in ("alembic", "mlflow.store.db", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs errors of the database with pages of traceback before it raises them.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_client(place: Place) -> Any:
    """An ``MlflowClient``, without setting a global tracking URI or an active run."""
    quiet_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=place.tracking_uri)
    _keep_locations_apart(client._tracking_client)
    return client


def _keep_locations_apart(service: Any) -> None:
    """Cache where a run's files are per client: MLflow's cache goes by the run's ID, which a copied home shares."""
    from mlflow.tracking._tracking_service import utils

    uncached = service._get_artifact_repo

    @functools.cache
    def of_this_client(run_id: str, **options: Any) -> Any:
        utils._artifact_repos_cache.pop(run_id, None)
        found = uncached(run_id, **options)
        utils._artifact_repos_cache.pop(run_id, None)
        return found

    service._get_artifact_repo = of_this_client


@contextlib.contextmanager
def mlflow_errors(tracking_uri: str, files: str, home: Path | None = None) -> Iterator[None]:
    """Convert errors of MLflow, its database and its artifact stores to :class:`TrackingError` or :class:`StoreError`.

    ``files`` is the location of the artifacts, for the message.  With ``home``, a file below neither of them that may
    not be written is taken for one that a tracking server has in a folder of its own machine.
    """
    try:
        yield
    except Exception as error:
        converted = _converted(error, tracking_uri, files, home)
        if converted is None:
            raise
        raise converted from error


_TRACKING = ("mlflow", "sqlalchemy", "requests", "urllib3")
_S3 = ("boto3", "botocore", "s3transfer")


def _converted(error: Exception, tracking_uri: str, files: str, home: Path | None) -> RD3Error | None:
    """None for an error of none of these packages, such as RD3's own.

    Errors are classified by the package of their type, because importing all these packages takes a second.
    """
    package = type(error).__module__.partition(".")[0]
    if package in _TRACKING:
        return mlflow_fault(error, tracking_uri, files).error(TrackingError, TrackingUnavailable)
    if package in _S3:
        try:
            with s3_errors(files, "the S3 server"):
                raise error
        except StoreError as converted:
            return converted
    if isinstance(error, OSError):
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        places = (str(home), files.removeprefix("file://"), tempfile.gettempdir())
        if home and tracking_uri.startswith("http") and _is_elsewhere(error, *places):
            return TrackingError(
                f"The tracking server {without_password(tracking_uri)} has the files of its runs at {error.filename}, "
                f"a folder of its own machine, which cannot be written here: {reason}.",
                FILES_OF_SERVER,
            )
        fix = "free space there (`rd3 artifacts gc`)" if is_disk_full(error) else "make it writable"
        inner = f" ({error.filename})" if isinstance(error.filename, str) and error.filename != files else ""
        return StoreError(f"Cannot store files at {files}: {reason}{inner}.", fix)
    return None


_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _is_elsewhere(error: OSError, *places: str) -> bool:
    """Whether it was not allowed to write a file that lies below none of these folders."""
    if error.errno not in _NOT_ALLOWED or not isinstance(error.filename, str):
        return False
    name = Path(error.filename)
    return name.is_absolute() and not any(name.is_relative_to(place) for place in places)


FILES_OF_SERVER = (
    "start it with --artifacts-destination (and without --no-serve-artifacts) or with an s3:// "
    "--default-artifact-root, and rename that experiment in MLflow: it keeps its location"
)
"""What helps where a tracking server stores files in a folder of its own machine."""
_RESUME = "check the server with `rd3 doctor`, then run the same command again to resume"
_SCHEMA = r"out-of-date database schema|Can't locate revision|(?:table|index) \S+ already exists|duplicate column"
_NO_TABLE = r"no such (?:table|column)"

_PERMANENT = ("does not exist", "no such table")
_DOWNLOAD = "The following failures occurred while downloading"
"""Prefix of MLflow's message for any failed download, which it reports as an internal error."""
_CONNECTION_ERROR = "ChunkedEncodingError|ConnectionError|ConnectTimeout|OperationalError|ReadTimeout|Timeout"
"""Types of errors of a connection, by name."""
_BROKEN = r"Connection (?:refused|reset by peer|aborted)|timed out"
_STATUS_IN_TEXT = (
    r"failed with error code (\d{3})",
    r"too many (\d{3}) error responses",
    r"\b([45]\d\d) (?:Client|Server) Error",
)


def mlflow_fault(error: Exception, uri: str, files: str) -> Fault:
    """The fault behind an error of MLflow's client at ``uri``; ``files``: root of the artifacts."""
    text, status, where = str(error), status_of(error), without_password(uri)
    if refusal := Refusal.quoted(text):
        if not uri.startswith("http"):
            return refused(refusal, files, "the S3 server")
        of_bucket = refused(refusal, files, f"the S3 server of MLflow at {where}")
        return Fault(of_bucket.message, f"for MLflow's own access to S3, {of_bucket.fix}", of_bucket.waits)
    if fault := _schema_fault(text, uri):
        return fault
    facts = {"where": where, "database": where, **MLFLOW_DATABASE}
    if uri.startswith("sqlite") and fault_in(text, SQLITE):
        return sqlite_fault(error, sqlite_path(uri))
    if fault := fault_in(text, TEXTS):
        return fault.about(**facts)
    if uri.startswith("http"):
        if fault := _fault_on_the_way(text, status, uri):
            return fault
        if status in STATUSES:
            return STATUSES[status].about(**facts)
    return Fault(f"MLflow at {where} {_summary(error)}.", _RESUME, _is_temporary(error, text, status))


def _schema_fault(text: str, uri: str) -> Fault | None:
    """The fault of a database whose tables are not those of the installed MLflow."""
    if uri.startswith("http") or not re.search(f"{_SCHEMA}|{_NO_TABLE}" if uri.startswith("sqlite") else _SCHEMA, text):
        return None
    if uri.startswith("sqlite"):
        return sqlite_schema_fault(uri, sqlite_path(uri))
    named = re.search(r"found version (\w+)|identified by '(\w+)'", text)
    found = (named[1] or named[2]) if named else None
    return schema_fault(uri, None if found == "None" else found)


def _fault_on_the_way(text: str, status: int, uri: str) -> Fault | None:
    """The fault if TLS or a proxy of this machine is the cause."""
    server = tracking_server(uri)
    if re.search(r"SSLError|SSL:|ProxyError|[Tt]unnel connection failed", text):
        return connection_fault(server, text)
    if status in (403, 502, 503, 504):
        by_proxy = proxy_fault(server)
        return by_proxy if by_proxy is not None and not by_proxy.waits else None
    return None


def status_of(error: Exception) -> int:
    """The HTTP status of an error of MLflow's client; 0 if it has none."""
    for pattern in _STATUS_IN_TEXT:
        if found := re.search(pattern, str(error)):
            return int(found[1])
    if hasattr(error, "get_http_status_code"):
        return int(error.get_http_status_code())
    # an error of requests, which MLflow's artifact client does not wrap
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _summary(error: Exception) -> str:
    """The error in one line, without the wrappers around a failed connection."""
    text = str(error).strip() or type(error).__name__
    reason = re.search(_BROKEN, text)
    if reason and re.search(r"HTTPS?ConnectionPool", text):
        return f"does not respond ({reason[0].lower()})"
    return f"failed: {text.splitlines()[0].rstrip('.')}"


def _is_temporary(error: Exception, text: str, status: int) -> bool:
    """Whether a later request to the server, or to a database used directly, may succeed.

    MLflow's client reports unknown errors, including refused connections, as internal errors, and so does a server
    whose database is down.  A server whose user database is down rejects every login (401); a wrong password has been
    reported before any work started (:mod:`tracking.runs.reachable`).
    """
    if any(words in text for words in _PERMANENT) or status in PERMANENT_STATUSES:
        return False
    if _DOWNLOAD in text:
        return re.search(r"\b(429|50[02346]|508)\b|[Cc]onnection|timed out|Max retries", text) is not None
    return status >= 500 or status in (401, 429) or bool(re.fullmatch(_CONNECTION_ERROR, type(error).__name__))
