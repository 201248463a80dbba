"""A bucket made ready for artifacts: private, and rid of uploads that were never completed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rd3.errors import StoreError

if TYPE_CHECKING:
    from tracking.ledger.s3 import S3Objects

UNFINISHED_DAYS = 7
_RULE = {
    "ID": "rd3-unfinished-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UNFINISHED_DAYS},
}
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "MalformedXML", "UnsupportedOperation", "InvalidRequest"}
"""What servers say that lack a part of S3."""
_FORBIDDEN = {"AccessDenied", "403"}


def create(documents: S3Objects) -> str:
    from botocore.exceptions import ClientError

    client, bucket = documents.client, documents.bucket
    with documents.errors():
        try:
            client.list_objects_v2(Bucket=bucket, MaxKeys=1)
            return f"{bucket}: is there"
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchBucket":
                raise
        region = client.meta.region_name
        # us-east-1 is the one region that AWS does not want to hear of, and what other servers call themselves.
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region != "us-east-1" else {}
        client.create_bucket(Bucket=bucket, **where)
    return f"{bucket}: made"


def block_public_access(documents: S3Objects) -> str:
    """Public access is blocked whatever a policy or an ACL may say later."""
    block = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    return _if_known(
        documents,
        "public access block",
        lambda: documents.client.put_public_access_block(
            Bucket=documents.bucket, PublicAccessBlockConfiguration=dict.fromkeys(block, True)
        ),
    )


def add_lifecycle(documents: S3Objects) -> str:
    """A lifecycle rule beside those that are there."""
    from botocore.exceptions import ClientError

    def add() -> None:
        try:
            found = documents.client.get_bucket_lifecycle_configuration(Bucket=documents.bucket).get("Rules", [])
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
                raise
            found = []
        rules = [rule for rule in found if rule.get("ID") != _RULE["ID"]] + [_RULE]
        documents.client.put_bucket_lifecycle_configuration(
            Bucket=documents.bucket, LifecycleConfiguration={"Rules": rules}
        )

    return _if_known(documents, f"lifecycle (unfinished uploads end after {UNFINISHED_DAYS} days)", add)


def _if_known(documents: S3Objects, what: str, ask: Callable[[], Any]) -> str:
    """Ask for what not every server knows, and not every key may set; neither stops RD3 from working."""
    from botocore.exceptions import ClientError

    with documents.errors():
        try:
            ask()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _UNKNOWN:
                return f"{documents.bucket}: this server has no {what} ({code})"
            if code in _FORBIDDEN:
                return f"{documents.bucket}: this key may not set the {what}; its owner should"
            raise
    return f"{documents.bucket}: {what} set"


def check_private(documents: S3Objects) -> None:
    """An unsigned listing must be refused."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    config = Config(signature_version=UNSIGNED, connect_timeout=3, read_timeout=20, retries={"max_attempts": 2})
    client = boto3.session.Session().client("s3", config=config)
    with documents.errors():
        try:
            client.list_objects_v2(Bucket=documents.bucket, MaxKeys=1)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                return
            raise
    raise StoreError(
        f"Bucket {documents.bucket!r} can be listed by anybody, without credentials.", "remove its public policy or ACL"
    )
