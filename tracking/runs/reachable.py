"""Check of the tracking server within a time limit; MLflow's own client would retry for minutes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, wait
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rd3.errors import TrackingError, TrackingUnavailable
from tracking.ledger.faults import Fault, connection_fault, proxy_fault, proxy_of, without_password
from tracking.runs.database import check_sqlite_schema
from tracking.runs.faults import STATUSES, sqlite_fault, tracking_server

T = TypeVar("T")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_START = "start it, or correct MLFLOW_TRACKING_URI"
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"


class LoginRejected(TrackingError):
    """The server rejects user name and password; one whose database of users is down rejects all."""


def check(uri: str, seconds: float) -> None:
    """Raise :class:`TrackingError` within about ``seconds`` if the tracking server or database cannot be used.

    It is a :class:`TrackingUnavailable` if the same check may succeed later.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme == "sqlite":
        if sqlite_file(uri) is None:
            raise TrackingError(
                f"The tracking URI {without_password(uri)!r} has no path.",
                "write sqlite:///relative/path.db or sqlite:////absolute/path.db",
            )
        check_sqlite(uri, seconds)
    elif scheme in ("http", "https"):
        _check_port(uri)
        if _within(seconds, uri, lambda: _status(uri.rstrip("/"), seconds)) != 200:
            from tracking.runs.client import quiet_mlflow

            quiet_mlflow()
            import mlflow.utils.rest_utils  # noqa: F401 - outside of the time limit

            _within(seconds, uri, lambda: _check_login(uri.rstrip("/"), seconds))
    elif scheme in _PORTS:
        _check_port(uri)
        _within(seconds, uri, lambda: _connect(uri, _PORTS[scheme], seconds))
    else:
        raise TrackingError(
            f"Unsupported tracking URI {without_password(uri)!r}.",
            "set MLFLOW_TRACKING_URI to http://..., postgresql+psycopg2://... or sqlite:////absolute/path.db",
        )


def _check_port(uri: str) -> None:
    try:
        urlsplit(without_password(uri)).port  # noqa: B018 - raises
    except ValueError:
        raise TrackingError(
            f"The tracking URI {without_password(uri)!r} has an invalid port; ports are 1 to 65535.",
            "correct MLFLOW_TRACKING_URI",
        ) from None


def sqlite_file(uri: str) -> Path | None:
    """The file of ``sqlite:///PATH``, with all that a path may contain but ``?``; None for any other address."""
    start, slashes, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if slashes and start.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


def sqlite_path(uri: str) -> Path:
    """The file of an SQLite database; its folder is created if necessary."""
    path = sqlite_file(uri) or Path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"Cannot create the MLflow database {path}: {error.strerror}.",
            "make that folder writable, or set RD3_HOME",
        ) from None
    return path


def check_sqlite(uri: str, seconds: float) -> None:
    """Check that the database can be written, without changing or creating it."""
    path = sqlite_path(uri)
    try:
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
            return
        with contextlib.closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.execute("ROLLBACK")
            check_sqlite_schema(database, uri, path)
    except (sqlite3.Error, OSError) as error:
        raise sqlite_fault(error, path).error(TrackingError, TrackingUnavailable) from None


def _within(seconds: float, uri: str, ask: Callable[[], Any]) -> Any:
    """The result of ``ask``, with a limit on the total time, including name resolution and slow responses."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(ask())
        except BaseException as error:  # raised in the caller's thread by result() below
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name="reach").start()
    if not wait([result], seconds).done:
        raise TrackingUnavailable(
            f"The tracking server {without_password(uri)} does not respond within {seconds:g} s.", _START
        )
    return result.result()


def _connect(uri: str, port: int, seconds: float) -> None:
    """Open a connection to a database server, whose usual port is ``port``, and close it."""
    parts = urlsplit(without_password(uri))
    try:
        socket.create_connection((parts.hostname or "localhost", parts.port or port), timeout=seconds).close()
    except OSError as error:
        raise TrackingUnavailable(
            f"The tracking database {without_password(uri)} does not respond: {error.strerror or error}.", _START
        ) from None


def _get(url: str, seconds: float) -> tuple[int, str]:
    """(status, beginning of the body) of a GET request; raises :class:`OSError` without a response."""
    url = without_password(url)  # urllib takes a user name for a part of the host's
    try:
        answer = urllib.request.urlopen(url, timeout=seconds, context=_tls(url))
    except urllib.error.HTTPError as error:  # an answer with another status than 2xx
        answer = error
    with answer:
        return answer.status, answer.read(400).decode(errors="replace")


def _tls(url: str) -> ssl.SSLContext | None:
    """The TLS settings of MLflow's client, from the same variables; None for http."""
    if not url.startswith("https"):
        return None
    context = ssl.create_default_context()
    names = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context = ssl._create_unverified_context()
    elif variable := next((name for name in names if os.environ.get(name)), ""):
        trusted = os.environ[variable]
        file, folder = (None, trusted) if Path(trusted).is_dir() else (trusted, None)
        context = _certificates(variable, lambda: ssl.create_default_context(cafile=file, capath=folder))
    if own := os.environ.get(_CLIENT):
        _certificates(_CLIENT, lambda: context.load_cert_chain(own))
    return context


_CLIENT = "MLFLOW_TRACKING_CLIENT_CERT_PATH"


def _certificates(variable: str, load: Callable[[], T]) -> T:
    """What ``load`` reads from the file or folder that an environment variable names."""
    try:
        return load()
    except OSError as error:
        path = os.environ[variable]
        wrong = f"which cannot be used: {error.strerror or error}" if Path(path).exists() else "which does not exist"
        raise TrackingError(f"{variable} names {path}, {wrong}.", "correct or unset that variable") from None


_SEARCH = "/api/2.0/mlflow/experiments/search"


def _status(uri: str, seconds: float) -> int:
    """Status of the server without credentials: 200, or 401 or 403 if it requires a login.

    Raises :class:`TrackingError` for any other status, and if the server does not respond or is not MLflow.
    """
    shown = without_password(uri)
    try:
        health_status, health = _get(f"{uri}/health", seconds)
        status, answer = _search(uri, health.strip(), seconds) if health_status == 200 else (health_status, health)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if fault := connection_fault(tracking_server(uri), str(reason)):
            raise fault.error(TrackingError, TrackingUnavailable) from None
        raise TrackingUnavailable(
            f"The tracking server {shown} does not respond: {getattr(reason, 'strerror', None) or reason}.", _START
        ) from None
    if status != 200 and (fault := _fault_of_other(uri, status, answer)):
        raise fault.error(TrackingError, TrackingUnavailable)
    if "Invalid Host header" in answer:
        raise TrackingError(
            f"The tracking server {shown} rejects that host name ({status}, protection against DNS rebinding).",
            f"start it with --allowed-hosts {urlsplit(uri).netloc.rpartition('@')[2]}, or use a name that it accepts",
        )
    if status >= 500:
        raise TrackingUnavailable(
            f"The tracking server {shown} responds with an error ({status}).", "check its log and its database"
        )
    if status not in (200, 401, 403):
        raise _not_mlflow(shown, f"HTTP status {status}")
    credentials = any(map(os.environ.get, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")))
    if health_status == 403 and not credentials:
        raise TrackingError(
            f"The server at {shown} refuses every request (403), and may not be MLflow (port 5000 is macOS's AirPlay).",
            "correct MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    return status


def _search(uri: str, health: str, seconds: float) -> tuple[int, str]:
    """(status, body) of a search for experiments, or of /version if that fails; ``health``: the body of /health.

    Raises :class:`TrackingError` if /health or /version does not answer as MLflow does.
    """
    shown = without_password(uri)
    not_mlflow = _not_mlflow(shown, f"/health returns {health[:40]!r}", health)
    if health != "OK":
        raise not_mlflow
    status, version = _get(f"{uri}/version", seconds)
    if status == 404:
        raise TrackingError(
            f"The server at {shown} does not report a version: it is an old MLflow, or another program.",
            "check the address, or install MLflow 3 there and run `mlflow db upgrade`",
        )
    if status >= 500:  # it stopped between the two requests
        return status, version
    if status not in (401, 403) and not re.fullmatch(r"\d+\.\d+\S{0,20}", version.strip()):
        raise not_mlflow
    return _get(f"{uri}{_SEARCH}?max_results=1", seconds)


def _fault_of_other(uri: str, status: int, body: str) -> Fault | None:
    """The fault if a proxy, or a port of the other scheme (http, https), responds instead of MLflow."""
    server = tracking_server(uri)
    # Only the fault of a server on this machine is one that stays.
    if (by_proxy := proxy_fault(server)) and not by_proxy.waits:
        return by_proxy
    if status == 400 and (fault := connection_fault(server, body)):
        return fault
    return STATUSES[status].about(where=without_password(uri)) if status in STATUSES else None


_PAGE = re.compile(r"\s*<(?:!doctype|html)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)


def _not_mlflow(shown: str, why: str, body: str = "") -> TrackingError:
    if proxy := proxy_of(shown):
        return TrackingError(
            f"What answers for {shown} through the proxy {proxy} is not an MLflow server ({why}).",
            "correct or unset HTTP_PROXY and HTTPS_PROXY, name the server in NO_PROXY, or start it",
        )
    if _PAGE.match(body):
        title = " ".join(found[1].split()) if (found := _TITLE.search(body)) else ""
        return TrackingError(
            f"{shown} answers with a web page{f' ({title!r})' if title else ''} instead of MLflow: it is another "
            "server, or one that asks for a login before MLflow.",
            "correct MLFLOW_TRACKING_URI; behind a login, set MLFLOW_TRACKING_TOKEN to a token that it accepts, or use "
            "an address without it",
        )
    return TrackingError(f"The server at {shown} is not an MLflow server ({why}).", _START)


def _check_login(uri: str, seconds: float) -> None:
    """Search for experiments with the credentials of MLflow's client; raises unless the status is 200."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    shown = without_password(uri)
    try:
        status: int = http_request(
            get_default_host_creds(uri),
            _SEARCH,
            "GET",
            params={"max_results": 1},
            timeout=seconds,
            max_retries=0,
            raise_on_status=False,
        ).status_code
    except MlflowException as error:
        first = str(error).splitlines()[0]
        raise TrackingUnavailable(f"The tracking server {shown} does not respond: {first}.", _START) from None
    if status in (401, 403):
        raise LoginRejected(f"The tracking server {shown} rejects the login (HTTP {status}).", _LOGIN)
    if status != 200:
        raise _not_mlflow(shown, f"HTTP status {status}")
