"""Lazy import of MLflow, which takes seconds, and conversion of its errors to one-sentence messages."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

from rd3.errors import RD3Error, StoreError, TrackingError, TrackingUnavailable
from tracking.ledger.s3 import s3_errors
from tracking.place import Place


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
    for name in ("alembic", "mlflow.store.db", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)


def open_client(place: Place) -> Any:
    """An ``MlflowClient``, without setting a global tracking URI or an active run."""
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=place.tracking_uri)


def without_password(uri: str) -> str:
    """The URI without user name and password, for messages."""
    scheme, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{path}"


@contextlib.contextmanager
def mlflow_errors(tracking_uri: str, files: str) -> Iterator[None]:
    """Convert errors of MLflow, its database and its artifact stores to :class:`TrackingError` or :class:`StoreError`.

    ``files`` is the location of the artifacts, for the message.
    """
    try:
        yield
    except RD3Error:
        raise
    except Exception as error:
        converted = _converted(error, tracking_uri, files)
        if converted is None:
            raise
        raise converted from error


_TRACKING = ("mlflow", "sqlalchemy", "requests", "urllib3")
_S3 = ("boto3", "botocore", "s3transfer")


def _converted(error: Exception, tracking_uri: str, files: str) -> RD3Error | None:
    """Errors are classified by the package of their type, because importing all these packages takes a second."""
    package = type(error).__module__.partition(".")[0]
    if package in _TRACKING:
        return (TrackingUnavailable if _is_temporary(error) else TrackingError)(
            f"MLflow at {without_password(tracking_uri)} {_summary(error)}.",
            "check the server with `rd3 doctor`, then run the same command again to resume",
        )
    if package in _S3:
        try:
            with s3_errors(files, "the S3 server"):
                raise error
        except StoreError as converted:
            return converted
    if isinstance(error, OSError):
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        return StoreError(f"Cannot store files at {files}: {reason}.", "free space or make that folder writable")
    return None


def _summary(error: Exception) -> str:
    """The error in one line, without the wrappers around a failed connection."""
    text = str(error).strip() or type(error).__name__
    reason = re.search(r"Connection (?:refused|reset by peer|aborted)|timed out", text)
    if reason and re.search(r"HTTPS?ConnectionPool", text):
        return f"does not respond ({reason[0].lower()})"
    return f"failed: {text.splitlines()[0].rstrip('.')}"


_PERMANENT = (
    "authentication failed",
    "does not exist",
    "no such table",
    "readonly database",
    "disk is full",
    "unable to open",
)
_DOWNLOAD = "The following failures occurred while downloading"
"""Prefix of MLflow's message for any failed download, which it reports as an internal error."""
_CONNECTION_ERRORS = (
    "ChunkedEncodingError",
    "ConnectionError",
    "ConnectTimeout",
    "OperationalError",
    "ReadTimeout",
    "Timeout",
)


def _is_temporary(error: Exception) -> bool:
    """Whether a later request to the server, or to a database used directly, may succeed.

    MLflow's client reports unknown errors, including refused connections, as internal errors, and so does a server
    whose database is down.  A server whose user database is down rejects every login (401); a wrong password has been
    reported before any work started (:mod:`tracking.runs.reachable`).
    """
    text = str(error)
    if any(words in text for words in _PERMANENT):
        return False
    if _DOWNLOAD in text:
        return re.search(r"\b(429|5\d\d)\b|[Cc]onnection|timed out|Max retries", text) is not None
    if hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    else:  # an error of requests, which MLflow's artifact client does not wrap
        status = getattr(getattr(error, "response", None), "status_code", 0)
    return status >= 500 or status in (401, 429) or type(error).__name__ in _CONNECTION_ERRORS
