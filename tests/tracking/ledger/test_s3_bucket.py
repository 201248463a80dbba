"""How a bucket is prepared where Swift cannot show it: with the answers of AWS, checked by botocore's own model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.stub import Stubber

from rd3.errors import StoreError
from tracking.ledger import s3_bucket
from tracking.ledger.s3 import S3Objects

OURS = s3_bucket._RULE
THEIRS = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}}
FOUND = "get_bucket_lifecycle_configuration"
PUT = "put_bucket_lifecycle_configuration"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


def objects_of(region: str = "us-east-1") -> tuple[S3Objects, Stubber]:
    objects = S3Objects("s3://theirs/rd3")
    objects.client = boto3.client("s3", region_name=region)
    return objects, Stubber(objects.client)


@pytest.mark.parametrize("before", [[], [THEIRS], [THEIRS, {**OURS, "Status": "Disabled"}]])
def test_the_rule_stands_beside_those_that_are_there(before: list[dict]):
    objects, stub = objects_of()
    if before:
        stub.add_response(FOUND, {"Rules": before}, {"Bucket": "theirs"})
    else:
        stub.add_client_error(FOUND, "NoSuchLifecycleConfiguration", http_status_code=404)
    after = [rule for rule in before if rule["ID"] == "theirs"] + [OURS]
    stub.add_response(PUT, {}, {"Bucket": "theirs", "LifecycleConfiguration": {"Rules": after}})
    with stub:
        assert s3_bucket.add_lifecycle(objects) == "theirs: lifecycle rule (aborts unfinished uploads after 7 days) set"
    stub.assert_no_pending_responses()


def test_all_public_access_is_blocked():
    objects, stub = objects_of()
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    wanted = {"Bucket": "theirs", "PublicAccessBlockConfiguration": dict.fromkeys(names, True)}
    stub.add_response("put_public_access_block", {}, wanted)
    with stub:
        assert s3_bucket.block_public_access(objects) == "theirs: public access block set"
    stub.assert_no_pending_responses()


def test_a_key_that_may_not_set_it_is_no_failure():
    objects, stub = objects_of()
    stub.add_client_error("put_public_access_block", "AccessDenied", http_status_code=403)
    with stub:
        assert (
            s3_bucket.block_public_access(objects)
            == "theirs: this key may not set the public access block; ask the bucket's owner to set it"
        )


@pytest.mark.parametrize("code", ["NotImplemented", "InvalidArgument", "MissingContentLength", "BadDigest"])
def test_a_server_without_the_feature_or_its_checksum_is_no_failure(code: str):
    """boto3 sends a checksum with this operation even with AWS_REQUEST_CHECKSUM_CALCULATION=when_required."""
    objects, stub = objects_of()
    stub.add_client_error("put_public_access_block", code, http_status_code=400)
    with stub:
        said = s3_bucket.block_public_access(objects)
    assert said == f"theirs: this server does not support the public access block ({code})"


@pytest.mark.parametrize(
    ("region", "more"),
    [("us-east-1", {}), ("eu-west-1", {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}})],
)
def test_a_bucket_is_made_in_its_region(region: str, more: dict):
    objects, stub = objects_of(region)
    stub.add_client_error("list_objects_v2", "NoSuchBucket", http_status_code=404)
    stub.add_response("create_bucket", {}, {"Bucket": "theirs", **more})
    with stub:
        assert s3_bucket.create(objects) == "theirs: created"
    stub.assert_no_pending_responses()


def test_the_name_of_somebody_else():
    objects, stub = objects_of()
    stub.add_client_error("list_objects_v2", "AccessDenied", http_status_code=403)
    with stub, pytest.raises(StoreError, match=r"rejects the S3 credentials for s3://theirs/rd3 \(AccessDenied\)"):
        s3_bucket.create(objects)


def test_parts_are_listed_of_old_uploads_alone():
    """One that completes between the two requests must not end the search."""
    objects, stub = objects_of()
    old, new = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
    uploads = [{"Key": f"rd3/{name}", "UploadId": name, "Initiated": at} for name, at in (("old", old), ("new", new))]
    stub.add_response("list_multipart_uploads", {"Uploads": uploads}, {"Bucket": "theirs", "Prefix": "rd3/"})
    one = {"Bucket": "theirs", "Key": "rd3/old", "UploadId": "old"}
    stub.add_response("list_parts", {"Parts": [{"Size": 5}, {"Size": 7}]}, one)
    with stub:
        [found] = objects.unfinished(before=datetime(2026, 1, 2, tzinfo=UTC).timestamp())
    assert (found.size, found.url) == (12, "s3://theirs/rd3/old")
    stub.assert_no_pending_responses()


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server that lists its buckets to everybody."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers
            body = b"<ListBucketResult><Name>theirs</Name><KeyCount>0</KeyCount></ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_a_bucket_that_everybody_may_list(open_to_all):
    with pytest.raises(
        StoreError, match=r"Bucket 'theirs' can be listed without credentials.* Fix: remove its public policy"
    ):
        s3_bucket.check_private(S3Objects("s3://theirs/rd3"))
