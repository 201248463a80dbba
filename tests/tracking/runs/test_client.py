"""What MLflow, its database and S3 raise: what may pass is told from what will not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rd3.errors import RD3Error, Unavailable
from tracking.ledger.s3 import s3_errors
from tracking.runs.client import mlflow_errors


def named(error: Exception) -> RD3Error:
    with pytest.raises(RD3Error) as caught, mlflow_errors("http://tracking", "s3://bucket/x"):
        raise error
    return caught.value


def test_mlflow_does_not_log_errors_of_the_database_that_it_raises(tmp_path: Path) -> None:
    """Its log has the whole traceback and the statement, before the sentence that the user gets."""
    code = (
        "import sys, sqlalchemy as s\nfrom tracking.runs.client import quiet_mlflow\nquiet_mlflow()\n"
        "from mlflow.store.db.utils import _get_managed_session_maker as m\nfrom sqlalchemy.orm import sessionmaker\n"
        "engine = s.create_engine(f'sqlite:///{sys.argv[1]}')\n"
        "try:\n    with m(sessionmaker(engine), 'sqlite')() as x: x.execute(s.text('INSERT INTO nothing VALUES (1)'))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "x.db")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("MlflowException\n", "")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("API request failed with exception Connection refused", True),
        ("The following failures occurred while downloading one or more artifacts: 503 Server Error", True),
        ("The following failures occurred while downloading one or more artifacts: No space left on device", False),
        ('(psycopg2.OperationalError) password authentication failed for user "rd3"', False),
        ("(sqlite3.OperationalError) database is locked", True),
        ("(sqlite3.OperationalError) attempt to write a readonly database", False),
    ],
)
def test_what_mlflow_calls_an_internal_error(text: str, passes: bool) -> None:
    from mlflow.exceptions import MlflowException

    assert isinstance(named(MlflowException(text)), Unavailable) is passes


def test_a_server_that_is_not_there_is_said_in_a_few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """By MLflow's own client, against a port where nobody listens."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable) as caught, mlflow_errors("http://127.0.0.1:9", "s3://bucket/x"):
        MlflowClient(tracking_uri="http://127.0.0.1:9").get_run("0" * 32)
    assert caught.value.message == "MLflow at http://127.0.0.1:9 does not respond (connection refused)."


@pytest.mark.parametrize(("status", "passes"), [(401, True), (403, False), (404, False), (503, True)])
def test_what_the_artifact_service_answers(status: int, passes: bool) -> None:
    """401 is also what a server says whose database of accounts is away."""
    import requests

    answer = requests.Response()
    answer.status_code = status
    assert isinstance(named(requests.HTTPError("no", response=answer)), Unavailable) is passes


@pytest.mark.parametrize(("code", "status", "passes"), [("AccessDenied", 403, False), ("SlowDown", 503, True)])
def test_an_upload_that_boto3_has_wrapped(code: str, status: int, passes: bool) -> None:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError

    def upload() -> None:
        try:
            about = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(about, "PutObject")
        except ClientError as error:
            raise S3UploadFailedError(f"Failed to upload: {error}")  # noqa: B904 - as boto3 does it

    with pytest.raises(RD3Error) as caught, s3_errors("s3://bucket/x", "http://s3"):
        upload()
    assert isinstance(caught.value, Unavailable) is passes
    assert code in str(caught.value)


def test_s3_that_mlflow_uses_in_this_process_is_named_once() -> None:
    """MLflow's client then knows the address, not RD3."""
    from botocore.exceptions import ClientError, EndpointConnectionError

    found = named(EndpointConnectionError(endpoint_url="http://s3", error=OSError("[Errno 111] Connection refused")))
    assert isinstance(found, Unavailable)
    assert found.message == "The S3 server does not respond (Connection refused)."
    missing = ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject")
    assert named(missing).message == "The S3 server has no bucket 'bucket'."
    timeout = ClientError({"Error": {"Code": "504"}, "ResponseMetadata": {"HTTPStatusCode": 504}}, "PutObject")
    assert "before the S3 server gets no response" in named(timeout).message


def test_s3_that_is_set_up_wrongly() -> None:
    from botocore.exceptions import ConnectTimeoutError, ProfileNotFound

    with pytest.raises(RD3Error, match="cannot be used") as caught, s3_errors("s3://bucket/x", "http://s3"):
        raise ProfileNotFound(profile="mine")
    assert not isinstance(caught.value, Unavailable)
    with pytest.raises(Unavailable), s3_errors("s3://bucket/x", "http://s3"):
        raise ConnectTimeoutError(endpoint_url="http://s3")


@pytest.mark.parametrize(
    ("status", "passes", "message", "fix"),
    [
        (407, False, "proxy between here and http://tracking requires a login", "HTTP_PROXY"),
        (413, False, "proxy before MLflow at http://tracking refuses a file of that size", "client_max_body_size"),
        (429, True, "limits the rate", "fewer trials"),
        (500, True, "failed", "rd3 doctor"),
        (501, False, "does not support", "version of MLflow"),
        (502, True, "does not reach it", "behind that proxy"),
        (503, True, "overloaded or starting", "log"),
        (504, True, "gave up waiting", "proxy_read_timeout"),
        (505, False, "failed", "rd3 doctor"),
        (507, False, "no space left where MLflow at http://tracking stores files", "rd3 artifacts gc"),
    ],
)
def test_statuses_and_their_fixes(status: int, passes: bool, message: str, fix: str) -> None:
    """As requests raises them for artifacts, as MLflow's client raises them, and after its retries."""
    import requests
    from mlflow.exceptions import MlflowException

    answer = requests.Response()
    answer.status_code = status
    kind = "Client" if status < 500 else "Server"
    errors = (
        requests.HTTPError(f"{status} {kind} Error: of the test for url: http://tracking/x", response=answer),
        MlflowException(f"API request to endpoint /x failed with error code {status} != 200. Response body: '<html>'"),
        MlflowException(f"Max retries exceeded (Caused by ResponseError('too many {status} error responses'))"),
    )
    for error in errors:
        found = named(error)
        assert isinstance(found, Unavailable) is passes
        assert message in found.message and fix in found.fix


@pytest.mark.parametrize(
    ("text", "passes", "message", "fix"),
    [
        (
            "An error occurred (XMinioStorageFull) when calling the PutObject operation: full",
            False,
            "The S3 server of MLflow at http://tracking has no space left",
            "for MLflow's own access to S3, free space",
        ),
        (
            "An error occurred (NoSuchBucket) when calling the PutObject operation: none",
            False,
            "has no bucket",
            "rd3 infra init",
        ),
        ("An error occurred (SlowDown) when calling the GetObject operation: slow", True, "limits the rate", "fewer"),
        (
            "The following failures occurred while downloading one or more artifacts from mlflow-artifacts:/1/r/"
            "artifacts:\n##### File set/images.bin #####\n[Errno 28] No space left on device",
            False,
            "no space left on this machine for files from MLflow at http://tracking",
            "where RD3_HOME is",
        ),
        ("(psycopg2.errors.DiskFull) could not extend file", False, "no space left for MLflow", "free space"),
        ('(psycopg2.OperationalError) database "x" does not exist', False, "no such database", "create it"),
        ("FATAL: sorry, too many clients already", True, "no free connection", "max_connections"),
        (
            "API request to http://tracking/api/2.0/mlflow-artifacts/artifacts/0/f failed with exception "
            "HTTPConnectionPool(host='tracking', port=80): Max retries exceeded with url: /api/2.0/mlflow-artifacts/"
            "artifacts/0/f (Caused by ProtocolError('Connection aborted.', ConnectionResetError(104, 'Connection "
            "reset by peer')))",
            True,
            "MLflow at http://tracking breaks off the connection when it should store or return a file.",
            "S3 credentials, endpoint or bucket of its own environment",
        ),
        ("SSLError(CERTIFICATE_VERIFY_FAILED self-signed)", False, "not trusted", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ],
)
def test_texts_and_their_fixes(text: str, passes: bool, message: str, fix: str) -> None:
    from mlflow.exceptions import MlflowException

    found = named(MlflowException(text))
    assert isinstance(found, Unavailable) is passes
    assert message in found.message and fix in found.fix


def test_a_schema_of_postgresql_has_the_command_with_its_address() -> None:
    from mlflow.exceptions import MlflowException

    uri = "postgresql+psycopg2://me@tracking/db"
    for revision, words in (("acf3f17fdcc7", f"mlflow db upgrade {uri}"), ("ffffffffffff", "pip install --upgrade")):
        text = f"Detected out-of-date database schema (found version {revision}, but expected 1234)."
        with pytest.raises(RD3Error) as caught, mlflow_errors(uri, "s3://bucket/x"):
            raise MlflowException(text)
        assert not isinstance(caught.value, Unavailable) and words in caught.value.fix


def test_a_server_that_stores_files_in_a_folder_of_its_own_machine(tmp_path: Path) -> None:
    """With MLflow's own artifact store; not even root can create a folder in /sys."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    (tmp_path / "grid.yaml").write_text("name: mine")
    store = LocalArtifactRepository("/sys/mlruns/1/run/artifacts")
    uri, home = "http://me:hush@127.0.0.1:9", tmp_path / "home"
    with pytest.raises(RD3Error) as caught, mlflow_errors(uri, str(home / "artifacts"), home):
        store.log_artifact(str(tmp_path / "grid.yaml"))
    assert caught.value.message.startswith(
        "The tracking server http://127.0.0.1:9 has the files of its runs at /sys/mlruns"
    )
    assert "--artifacts-destination" in caught.value.fix and not isinstance(caught.value, Unavailable)
    own = str(home / "artifacts")
    for files, name in (
        (own, f"{own}/x"),
        ("file:///srv/art", "/srv/art/x"),
        (own, f"{tempfile.gettempdir()}/a/x.png"),
    ):
        with pytest.raises(RD3Error, match=f"Cannot store files at {files}") as caught, mlflow_errors(uri, files, home):
            raise PermissionError(13, "Permission denied", name)
        assert caught.value.fix == "make it writable"


def test_a_loopback_server_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    """By MLflow's own client."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    uri = "http://127.0.0.1:9"
    with pytest.raises(RD3Error, match=r"sent to the proxy") as caught, mlflow_errors(uri, "s3://bucket/x"):
        MlflowClient(tracking_uri=uri).get_run("0" * 32)
    assert caught.value.fix == "add 127.0.0.1 to NO_PROXY"
    assert not isinstance(caught.value, Unavailable)
