"""Loading MLflow: quietly, late, and with its failures in one sentence.  Takes seconds, so only what needs it calls."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

from rd3.errors import RD3Error, StoreError, TrackingError
from tracking.place import Place


def quiet_mlflow() -> None:
    """Settings that MLflow reads when it is imported; what the user has set stays.

    The one place where ``tracking`` touches the environment: MLflow has no other switch for these.
    """
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
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
def mlflow_errors(place: Place) -> Iterator[None]:
    """What MLflow, its database and its artifact stores raise, as :class:`TrackingError` or :class:`StoreError`."""
    try:
        yield
    except RD3Error:
        raise
    except Exception as error:
        named = _named(error, place)
        if named is None:
            raise
        raise named from error


_TRACKING = ("mlflow", "sqlalchemy", "requests", "urllib3")
_S3 = ("boto3", "botocore", "s3transfer")


def _named(error: Exception, place: Place) -> RD3Error | None:
    """Told apart by the package that raised it, since importing them all to ask costs a second."""
    package = type(error).__module__.partition(".")[0]
    if package in _TRACKING:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return TrackingError(
            f"MLflow at {without_password(place.tracking_uri)} failed: {first}.",
            "`rd3 doctor` checks the server; the same command continues where it stopped",
        )
    if package in _S3:
        return StoreError(
            f"The files cannot be kept at {place.artifacts}: {error}.",
            "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if isinstance(error, OSError):
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        return StoreError(
            f"The files cannot be kept at {place.artifacts}: {reason}.", "free space or make that folder writable"
        )
    return None
