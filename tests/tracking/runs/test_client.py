"""What MLflow, its database and S3 raise: what may pass is told from what will not."""

from __future__ import annotations

import pytest

from rd3.errors import RD3Error, Unavailable
from tracking.ledger.s3 import s3_errors
from tracking.runs.client import mlflow_errors


def named(error: Exception) -> RD3Error:
    with pytest.raises(RD3Error) as caught, mlflow_errors("http://tracking", "s3://bucket/x"):
        raise error
    return caught.value


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


def test_s3_that_is_set_up_wrongly() -> None:
    from botocore.exceptions import ConnectTimeoutError, ProfileNotFound

    with pytest.raises(RD3Error, match="cannot be used") as caught, s3_errors("s3://bucket/x", "http://s3"):
        raise ProfileNotFound(profile="mine")
    assert not isinstance(caught.value, Unavailable)
    with pytest.raises(Unavailable), s3_errors("s3://bucket/x", "http://s3"):
        raise ConnectTimeoutError(endpoint_url="http://s3")
