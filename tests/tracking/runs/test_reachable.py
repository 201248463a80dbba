"""A tracking server that is down, deaf, closed to us or something else is named at once."""

from __future__ import annotations

import contextlib
import errno
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rd3.errors import TrackingError, TrackingUnavailable
from tests.tracking.servers import self_signed, serving
from tracking.place import Place
from tracking.runs.faults import sqlite_fault
from tracking.runs.reachable import LoginRejected
from tracking.runs.runs import Tracker

ASK = "/api/2.0/mlflow/experiments/search"


def check(uri: str, seconds: float = 5.0) -> None:
    Tracker(Place(tracking_uri=uri, artifacts="unused", home=Path("unused"))).check(seconds)


@pytest.fixture
def serve() -> Iterator[object]:
    """Starts servers that answer as a table of path -> (status, body) says."""
    running: list[ThreadingHTTPServer] = []

    def start(table: dict[str, tuple[int, str]]) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = table.get(self.path.partition("?")[0], (404, "nothing here"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_said: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def test_a_server_that_is_mlflow(serve) -> None:
    address = serve({"/health": (200, "OK"), "/version": (200, "3.17.2"), ASK: (200, "{}")})
    check(address)
    check(address.replace("//", "//me@"))


def test_a_server_that_is_down(closed_port: int) -> None:
    with pytest.raises(
        TrackingUnavailable, match=rf"127.0.0.1:{closed_port} does not respond: Connection refused\. Fix: start it"
    ):
        check(f"http://127.0.0.1:{closed_port}")
    with pytest.raises(
        TrackingUnavailable, match=r"postgresql\+psycopg2://127.0.0.1:\d+/db does not respond"
    ) as caught:
        check(f"postgresql+psycopg2://me:secret@127.0.0.1:{closed_port}/db")
    assert "secret" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(TrackingUnavailable, match=r"does not respond"):
        check(f"http://127.0.0.1:{deaf.getsockname()[1]}", seconds=0.2)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"/health": (200, "welcome"), "/version": (200, "welcome")},
        {"/health": (200, "OK"), "/version": (200, "OK")},
        {"/health": (200, "OK"), "/version": (200, "3.17.2"), ASK: (404, "")},
    ],
)
def test_a_server_that_is_something_else(serve, table: dict[str, tuple[int, str]]) -> None:
    with pytest.raises(TrackingError, match="is not an MLflow server"):
        check(serve(table))


def test_a_page_without_a_title_in_place_of_mlflow(no_proxies: None, serve) -> None:
    page = (200, "<html>welcome</html>")
    with pytest.raises(TrackingError, match="answers with a web page instead of MLflow: it is another server"):
        check(serve({"/health": page, "/version": page}))


def test_a_server_without_its_database(serve) -> None:
    with pytest.raises(TrackingError, match=r"responds with an error \(500\)\. Fix: .*database"):
        check(serve({"/health": (200, "OK"), "/version": (200, "3.17.2"), ASK: (500, "")}))


def test_a_server_that_stops_after_the_first_request(no_proxies: None, serve) -> None:
    """It was said not to be MLflow, because ``/health`` returned ``OK``."""
    with pytest.raises(TrackingUnavailable, match=r"overloaded or starting \(503\)"):
        check(serve({"/health": (200, "OK"), "/version": (503, "later")}))


def test_what_is_no_web_server_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as caller:
                caller.recv(1000)
                caller.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TrackingError, match="does not respond"):
            check(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_a_server_that_reports_no_version(serve) -> None:
    with pytest.raises(TrackingError, match=r"The server at .* does not report a version.*install MLflow 3 there"):
        check(serve({"/health": (200, "OK"), "/version": (404, "<title>404 Not Found</title>")}))


@pytest.mark.parametrize("version", [(200, "3.17.2"), (401, "You are not authenticated")])
@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_does_not_let_us_in(
    serve, status: int, version: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    closed = (status, "You are not authenticated")
    with pytest.raises(LoginRejected, match=rf"rejects the login \(HTTP {status}\)\. Fix: set MLFLOW_"):
        check(serve({"/health": (200, "OK"), "/version": version, ASK: closed}))


def test_a_server_that_refuses_its_own_name(serve) -> None:
    said = "Invalid Host header - possible DNS rebinding attack detected"
    with pytest.raises(TrackingError, match=r"rejects that host name \(403.*--allowed-hosts"):
        check(serve({"/health": (403, said)}))
    with pytest.raises(TrackingError, match=r"rejects that host name \(403.*--allowed-hosts 127\.0\.0\.1:\d+, or"):
        check(serve({"/health": (200, "OK"), "/version": (200, "3.17.2"), ASK: (403, said)}))


def test_a_login_page_in_front_of_mlflow(no_proxies: None, serve) -> None:
    page = "<!DOCTYPE html><html><head><title>Sign in\n - Access</title>"
    with pytest.raises(
        TrackingError, match=r"web page \('Sign in - Access'\) instead of MLflow.*MLFLOW_TRACKING_TOKEN"
    ):
        check(serve({"/health": (200, page)}))


def torn(path: Path) -> Path:
    """A database of which the first page was written before a crash."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        for number in range(100):  # more than a page holds
            database.execute(f"CREATE TABLE t{number} (a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT)")
        database.commit()
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + bytes(len(raw) - 4096))
    return path


def test_databases_and_what_is_none(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "text.db").write_text("this is not a database, however long it may be" * 20)
    with pytest.raises(TrackingError, match=r"Cannot write the MLflow database .*text.db: file is not a database"):
        check(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(TrackingError, match=r"The MLflow database .*torn.db is damaged\. Fix: restore a backup"):
        check(f"sqlite:///{torn(tmp_path / 'torn.db')}")
    with pytest.raises(TrackingError, match=r"Cannot create the MLflow database .*: (Not a directory|File exists)"):
        check(f"sqlite:///{tmp_path / 'text.db' / 'mlflow.db'}")
    with pytest.raises(
        TrackingError, match=r"The tracking URI 'sqlite://x\.db' has no path\. Fix: write sqlite:///rel"
    ):
        check("sqlite://x.db")
    for without in ("sqlite:///", "sqlite:///:memory:"):
        with pytest.raises(TrackingError, match="has no path"):
            check(without)
    for port in ("99999", "1x"):
        with pytest.raises(TrackingError, match=f"{port}/db' has an invalid port; ports are 1 to 65535"):
            check(f"postgresql+psycopg2://127.0.0.1:{port}/db")
    with pytest.raises(TrackingError, match=r"99999' has an invalid port; ports are 1 to 65535"):
        check("http://127.0.0.1:99999")
    with pytest.raises(TrackingError, match=r"Unsupported tracking URI '\./mlruns'"):
        check("./mlruns")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies of its first request


def test_a_loopback_server_behind_a_proxy(
    no_proxies: None, serve, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that does not respond, and one that rejects the request."""
    uri = serve({"/health": (200, "OK"), "/version": (200, "3.17.2"), ASK: (200, "{}")})
    for proxy in (f"http://127.0.0.1:{closed_port}", serve({})):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(TrackingError, match=r"is on this machine, .* Fix: add 127\.0\.0\.1 to NO_PROXY"):
            check(uri)
        monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    check(uri)


def test_a_certificate_that_is_not_trusted_and_the_fix(
    no_proxies: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    certificate = self_signed(tmp_path)
    with serving(502, b"", certificate=certificate) as uri:
        with pytest.raises(TrackingError, match=r"not trusted here.* Fix: set MLFLOW_TRACKING_SERVER_CERT_PATH"):
            check(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        with pytest.raises(TrackingError, match=r"does not reach it \(502\)"):
            check(uri)
        with (
            pytest.raises(TrackingError, match=r"does not use TLS.* Fix: write http:// instead"),
            serving(200, b"OK") as http,
        ):
            check(http.replace("http:", "https:"))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
        with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_SERVER_CERT_PATH names .*none\.pem, which does not"):
            check(uri)
        (tmp_path / "none.pem").write_text("no certificate")
        with pytest.raises(TrackingError, match=r"none\.pem, which cannot be used: .*\. Fix: correct or unset that"):
            check(uri)
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(tmp_path / "own.pem"))
        with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_CLIENT_CERT_PATH names .*own\.pem, which does not"):
            check(uri)


def test_http_to_a_port_of_https(no_proxies: None, serve) -> None:
    page = "<title>400 The plain HTTP request was sent to HTTPS port</title>"
    with pytest.raises(TrackingError, match=r"uses TLS at that port\. Fix: write https:// instead"):
        check(serve({"/health": (400, page)}))


@pytest.mark.parametrize(("status", "words"), [(502, "behind that proxy"), (504, "proxy_read_timeout")])
def test_a_reverse_proxy_without_its_server(no_proxies: None, serve, status: int, words: str) -> None:
    with pytest.raises(TrackingError, match=words):
        check(serve({"/health": (status, "<html>nginx</html>")}))


def test_a_proxy_that_answers_itself_is_named(no_proxies: None, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve({"http://mlflow.example:5000/health": (200, "<html>log in</html>")}).removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://{proxy}")
    with pytest.raises(TrackingError, match=rf"What answers for .* through the proxy {proxy} is not an MLflow server"):
        check("http://mlflow.example:5000")


def test_a_database_above_the_limit_of_file_sizes(tmp_path: Path) -> None:
    fault = sqlite_fault(sqlite3.OperationalError("disk I/O error"), tmp_path / "x.db")
    assert not fault.waits
    assert "check the disk, its quota and the limit of file sizes" in fault.fix


def test_a_database_whose_disk_has_no_inode_left_for_its_journal(tmp_path: Path, monkeypatch) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    error = sqlite3.OperationalError("unable to open database file")
    assert "make the file and its folder writable" in sqlite_fault(error, tmp_path / "x.db").fix
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    fault = sqlite_fault(error, tmp_path / "x.db")
    assert "There is no space left for the MLflow database" in fault.message and "inodes" in fault.fix


def test_a_database_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre mounted without -o flock: SQLite says that reading and writing failed."""

    def unsupported(*_arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    fault = sqlite_fault(sqlite3.OperationalError("disk I/O error"), tmp_path / "x.db")
    assert f"The file system of {tmp_path} has no file locks" in fault.message and "RD3_HOME" in fault.fix


def test_airplay_at_the_port_of_mlflow(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingError, match=r"refuses every request .403., and may not be MLflow"):
        check(serve({"/health": (403, ""), ASK: (403, "")}))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    with pytest.raises(LoginRejected):
        check(serve({"/health": (403, ""), ASK: (403, "")}))
