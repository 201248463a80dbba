"""Every refusal of an S3 server is waited for only if that can help, and has a fix for its cause."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rd3.errors import RD3Error, StoreError, Unavailable
from tests.tracking.servers import s3_error, self_signed, serving
from tracking.ledger.s3 import S3Objects

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    others = ("AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_REQUEST_CHECKSUM_CALCULATION", "MLFLOW_S3_ENDPOINT_URL")
    for name in (*others, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    # boto3's own retries need no pauses here
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None, time=time.time))


def failure(monkeypatch: pytest.MonkeyPatch, url: str, root: str = "s3://bucket/rd3") -> RD3Error:
    """The error of a conditional upload."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(StoreError) as caught:
        S3Objects(root).put("x", b"1", only_if_absent=True)
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "waits", "message", "fix"),
    [
        (404, "NoSuchBucket", False, "has no bucket 'bucket'", "rd3 infra init"),
        (400, "ExpiredToken", False, "session token .* has expired", "AWS_SESSION_TOKEN"),
        (400, "InvalidToken", False, "session token", "unset AWS_SESSION_TOKEN"),
        (403, "ExpiredTokenException", False, "session token .* has expired", "aws sso login"),
        (403, "RequestTimeTooSkewed", False, "clock", "NTP"),
        (403, "RequestExpired", False, "clock", "NTP"),
        (403, "AccessDenied", False, "rejects the S3 credentials", "AWS_ACCESS_KEY_ID"),
        (403, "AccountProblem", False, "disabled access for this account", "provider"),
        (403, "AllAccessDisabled", False, "disabled access for this account", "provider"),
        (301, "PermanentRedirect", False, "in another region", "AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", False, "in another region", "AWS_DEFAULT_REGION"),
        (400, "IllegalLocationConstraintException", False, "in another region", "AWS_DEFAULT_REGION"),
        (400, "InvalidBucketName", False, "does not accept 'bucket' as the name", "3 to 63 lower-case"),
        (411, "MissingContentLength", False, "checksums of an upload", CHECKSUMS),
        (400, "InvalidArgument", False, "checksums of an upload", CHECKSUMS),
        (400, "XAmzContentSHA256Mismatch", False, "checksums of an upload", CHECKSUMS),
        (501, "NotImplemented", False, "checksums or the condition If-None-Match", CHECKSUMS),
        (405, "MethodNotAllowed", False, "does not allow PutObject", "AWS_ENDPOINT_URL to the S3 interface"),
        (400, "KMS.DisabledException", False, "KMS key", "kms:GenerateDataKey"),
        (507, "XMinioStorageFull", False, "no space left", "rd3 artifacts gc"),
        (507, "Unheard", False, "no space left", "raise the quota"),
        (403, "QuotaExceeded", False, "no space left", "raise the quota"),
        (413, "EntityTooLarge", False, "refuses an object of that size", "client_max_body_size"),
        (429, "TooManyRequests", True, "limits the rate", "fewer trials"),
        (503, "SlowDown", True, "limits the rate", "fewer trials"),
        (500, "InternalError", True, "failed on s3://bucket/rd3", "log of that server"),
        (503, "Unheard", True, "failed on s3://bucket/rd3", "log of that server"),
        (400, "Unheard", False, "failed on s3://bucket/rd3", "log of that server"),
    ],
)
def test_codes(monkeypatch: pytest.MonkeyPatch, status: int, code: str, waits: bool, message: str, fix: str) -> None:
    with serving(status, s3_error(code)) as url, pytest.raises(StoreError, match=message) as caught:
        raise failure(monkeypatch, url)
    assert isinstance(caught.value, Unavailable) is waits
    assert fix in caught.value.fix
    if code not in ("NoSuchBucket", "InvalidBucketName"):
        assert code in caught.value.message


@pytest.mark.parametrize(
    ("status", "waits", "message", "fix"),
    [
        (413, False, r"refuses an object of that size \(413\)", "nginx: client_max_body_size"),
        (502, True, r"proxy before .* gets no response .*\(502\)", "timeouts of the proxy"),
        (504, True, r"proxy before .* gets no response .*\(504\)", "proxy_read_timeout"),
        (507, False, r"no space left .*\(507\)", "free space"),
    ],
)
def test_statuses_of_a_reverse_proxy_before_s3(
    monkeypatch: pytest.MonkeyPatch, status: int, waits: bool, message: str, fix: str
) -> None:
    page = b"<html><h1>of nginx</h1></html>"
    with serving(status, page, {"Content-Type": "text/html"}) as url:
        error = failure(monkeypatch, url)
    assert isinstance(error, Unavailable) is waits
    with pytest.raises(StoreError, match=message):
        raise error
    assert fix in error.fix


def test_the_region_that_the_server_names_is_in_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(400, s3_error("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")) as url:
        assert failure(monkeypatch, url).fix == "set AWS_DEFAULT_REGION to the region of the bucket (eu-west-3)"


def test_the_header_that_the_server_names_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(501, s3_error("NotImplemented", "<Header>If-None-Match</Header>")) as url:
        assert "conditional writes" in failure(monkeypatch, url).fix
    with serving(501, s3_error("NotImplemented", "<Header>x-amz-checksum-crc32</Header>")) as url:
        assert failure(monkeypatch, url).fix == f"set {CHECKSUMS}"


def test_a_fix_that_has_been_followed_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    with serving(501, s3_error("NotImplemented")) as url:
        assert "use a server with conditional writes" in failure(monkeypatch, url).fix
    with serving(400, s3_error("InvalidArgument")) as url:
        assert failure(monkeypatch, url).fix == "check the log of that server"


def test_an_upper_case_bucket_is_refused_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    error = failure(monkeypatch, "http://127.0.0.1:9", "s3://My_Bucket!/rd3")
    assert "My_Bucket!" in error.message and "3 to 63 lower-case" in error.fix
    assert not isinstance(error, Unavailable)


def test_an_address_without_http(monkeypatch: pytest.MonkeyPatch) -> None:
    fix = "write AWS_ENDPOINT_URL with http:// or https://, without quotation marks or spaces around it"
    for address in ("127.0.0.1:9000", '"http://127.0.0.1:9000"'):
        assert failure(monkeypatch, address).fix == fix


def test_a_download_whose_checksum_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a user has set one of the two variables only."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    with serving(400, s3_error("InvalidArgument")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreError, match="does not accept that a download asks for its checksum") as caught:
            S3Objects("s3://bucket/rd3").get("x")
        assert "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required" in caught.value.fix
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        with pytest.raises(StoreError, match=r"failed on s3://bucket/rd3 \(InvalidArgument\)"):
            S3Objects("s3://bucket/rd3").get("x")


def test_deletes_that_are_denied_are_not_taken_for_wrong_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(403, s3_error("AccessDenied")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreError, match=r"does not allow DeleteObject on s3://bucket/rd3") as caught:
            S3Objects("s3://bucket/rd3").delete("x")
    assert "s3:DeleteObject" in caught.value.fix and "object lock" in caught.value.fix


def test_a_permission_that_the_server_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Amazon answers a request for a missing object if the key must not list the bucket."""
    said = "User: arn:aws:iam::1:user/lab is not authorized to perform: s3:ListBucket on resource: arn:aws:s3:::bucket"
    with serving(403, s3_error("AccessDenied", message=said)) as url:
        refused = failure(monkeypatch, url)
    assert "does not allow these credentials s3:ListBucket on s3://bucket/rd3 (AccessDenied)" in refused.message
    assert "infra/s3/policy.json" in refused.fix


def test_a_certificate_that_is_not_trusted_and_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    with serving(403, s3_error("AccessDenied"), certificate=certificate) as url:
        error = failure(monkeypatch, url)
        assert "is not trusted here" in error.message and "set AWS_CA_BUNDLE to a file" in error.fix
        assert not isinstance(error, Unavailable)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert "AccessDenied" in failure(monkeypatch, url).message, "the fix leads to the server"


@pytest.mark.parametrize(
    ("address", "days", "message"), [("10.9.8.7", 1, "for another host name"), ("127.0.0.1", -1, "has expired")]
)
def test_a_certificate_of_another_host_or_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, days: int, message: str
) -> None:
    certificate = self_signed(tmp_path, address, days)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with serving(403, s3_error("AccessDenied"), certificate=certificate) as url:
        assert message in failure(monkeypatch, url).message


def test_https_to_a_port_of_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(403, s3_error("AccessDenied")) as url:
        error = failure(monkeypatch, url.replace("http:", "https:"))
    assert "does not use TLS" in error.message and "http:// instead of https://" in error.fix
    assert not isinstance(error, Unavailable)


def test_a_proxy_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    """The proxy is not there; then there is one, which rejects the request with a page of its own."""
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{closed_port}")
    with serving(403, s3_error("AccessDenied")) as url:
        error = failure(monkeypatch, url)
        assert "is on this machine" in error.message and error.fix == "add 127.0.0.1 to NO_PROXY"
        assert "secret" not in str(error) and not isinstance(error, Unavailable)
        with serving(503, b"<html>squid</html>", {"Content-Type": "text/html"}) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy)
            assert failure(monkeypatch, url).fix == "add 127.0.0.1 to NO_PROXY"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert "AccessDenied" in failure(monkeypatch, url).message, "the fix leads to the server"


def test_a_proxy_before_the_own_network_may_come_back(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    error = failure(monkeypatch, "http://storage:9000")
    assert isinstance(error, Unavailable) and error.fix.startswith("add storage to NO_PROXY")
    assert "HTTP_PROXY" in failure(monkeypatch, "http://s3.example.org").fix


def test_an_endpoint_that_only_mlflow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://storage:9000")
    with pytest.raises(StoreError, match=r"but only MLflow reads it.* Fix: set AWS_ENDPOINT_URL=http://storage:9000"):
        S3Objects("s3://bucket/rd3").get("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage:9000")
    assert S3Objects("s3://bucket/rd3").client.meta.endpoint_url == "http://storage:9000"


def test_a_password_in_the_address_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:S3cret@storage:9000")
    with pytest.raises(StoreError, match=r"AWS_ENDPOINT_URL.* contains a password") as caught:
        S3Objects("s3://bucket/rd3").get("x")
    assert "S3cret" not in str(caught.value)


def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    objects = S3Objects("s3://bucket/rd3")
    for ask in (lambda: objects.get("x"), objects.has_credentials):
        with pytest.raises(StoreError, match=r"\(mine\) could not be found\. Fix: correct AWS_PROFILE"):
            ask()


def test_an_expired_login_names_its_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By botocore itself: a profile of AWS's single sign-on whose cached token has expired."""
    (tmp_path / "config").write_text(
        "[profile lab]\nsso_session = lab\nsso_account_id = 1\nsso_role_name = x\nregion = eu-west-1\n"
        "[sso-session lab]\nsso_start_url = https://lab.example/start\nsso_region = eu-west-1\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with pytest.raises(StoreError, match="login for s3://bucket/x has expired") as refused:
        S3Objects("s3://bucket/x").get("document")
    assert refused.value.fix == "run `aws sso login --profile lab`"
