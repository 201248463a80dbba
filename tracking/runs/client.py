"""Loading MLflow: quietly, late, and with its failures in one sentence.  Takes seconds, so only what needs it calls."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

from rd3.errors import RD3Error, StoreError, TrackingAway, TrackingError
from tracking.ledger.s3 import s3_errors
from tracking.place import Place


def quiet_mlflow() -> None:
    """Settings that MLflow reads when it is imported; what the user has set stays.

    The one place where ``tracking`` touches the environment: MLflow has no other switch for these.
    """
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        # The client's own seven attempts are silent for minutes; whoever can wait says so (tracking.ledger.retry).
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)


def open_client(place: Place) -> Any:
    """An ``MlflowClient``; no global tracking URI, no active run."""
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=place.tracking_uri)


def without_password(uri: str) -> str:
    """A URI fit for a message."""
    scheme, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"


@contextlib.contextmanager
def mlflow_errors(tracking_uri: str, files: str) -> Iterator[None]:
    """What MLflow, its database and its artifact stores raise, as :class:`TrackingError` or :class:`StoreError`.

    ``files``: where the files are kept, for the message.
    """
    try:
        yield
    except RD3Error:
        raise
    except Exception as error:
        named = _named(error, tracking_uri, files)
        if named is None:
            raise
        raise named from error


_TRACKING = ("mlflow", "sqlalchemy", "requests", "urllib3")
_S3 = ("boto3", "botocore", "s3transfer")


def _named(error: Exception, tracking_uri: str, files: str) -> RD3Error | None:
    """Told apart by the package that raised it, since importing them all to ask costs a second."""
    package = type(error).__module__.partition(".")[0]
    if package in _TRACKING:
        return (TrackingAway if _is_away(error) else TrackingError)(
            f"MLflow at {without_password(tracking_uri)} {_said(error)}.",
            "`rd3 doctor` checks the server; the same command continues where it stopped",
        )
    if package in _S3:
        try:
            with s3_errors(files, "the S3 server"):
                raise error
        except StoreError as named:
            return named
    if isinstance(error, OSError):
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        return StoreError(f"The files cannot be kept at {files}: {reason}.", "free space or make that folder writable")
    return None


def _said(error: Exception) -> str:
    """What it says in a line, without the wrapping of a connection that failed."""
    text = str(error).strip() or type(error).__name__
    reason = re.search(r"Connection (?:refused|reset by peer|aborted)|timed out", text)
    if reason and re.search(r"HTTPS?ConnectionPool", text):
        return f"does not answer ({reason[0].lower()})"
    return f"failed: {text.splitlines()[0].rstrip('.')}"


_LASTING = (
    "authentication failed",
    "does not exist",
    "no such table",
    "readonly database",
    "disk is full",
    "unable to open",
)
_DOWNLOAD = "The following failures occurred while downloading"
"""MLflow's words around whatever went wrong; all of it counts as an internal error there."""
_UNHEARD = ("ChunkedEncodingError", "ConnectionError", "ConnectTimeout", "OperationalError", "ReadTimeout", "Timeout")


def _is_away(error: Exception) -> bool:
    """Whether the server, or a database in its place, may answer if it is asked again.

    MLflow's client calls what it cannot name, a refused connection too, an internal error; so does a server whose own
    database is away.  While the database of its accounts is away, a server lets nobody in (401); a wrong password has
    been named before anything began (:mod:`tracking.runs.reachable`).
    """
    text = str(error)
    if any(words in text for words in _LASTING):
        return False
    if _DOWNLOAD in text:
        return re.search(r"\b(429|5\d\d)\b|[Cc]onnection|timed out|Max retries", text) is not None
    if hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    else:  # of requests, which MLflow lets through from its artifact service
        status = getattr(getattr(error, "response", None), "status_code", 0)
    return status >= 500 or status in (401, 429) or type(error).__name__ in _UNHEARD
