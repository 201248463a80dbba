"""Setup of a bucket for artifacts: private access, and a rule that aborts uploads that were not completed."""

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
_UNKNOWN = {
    *("NotImplemented", "MethodNotAllowed", "MalformedXML", "UnsupportedOperation", "InvalidRequest"),
    *("InvalidArgument", "MissingContentLength", "XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"),
}
"""Error codes of servers that do not implement an operation, or not the checksum that boto3 always sends with it."""
_FORBIDDEN = {"AccessDenied", "403"}


def create(objects: S3Objects) -> str:
    client, bucket = objects.client, objects.bucket
    if objects.asked(lambda: client.list_objects_v2(Bucket=bucket, MaxKeys=1), {"NoSuchBucket"}) is not None:
        return f"{bucket}: exists"
    with objects.errors():
        region = client.meta.region_name
        # AWS does not accept us-east-1 as a location constraint, and other servers use it as their name.
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region != "us-east-1" else {}
        client.create_bucket(Bucket=bucket, **where)
    return f"{bucket}: created"


def block_public_access(objects: S3Objects) -> str:
    """Block public access, whatever a later policy or ACL allows; returns a line about the outcome."""
    block = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    return _if_known(
        objects,
        "public access block",
        lambda: objects.client.put_public_access_block(
            Bucket=objects.bucket, PublicAccessBlockConfiguration=dict.fromkeys(block, True)
        ),
    )


def add_lifecycle(objects: S3Objects) -> str:
    """Add a lifecycle rule to the existing ones; returns a line about the outcome."""
    from botocore.exceptions import ClientError

    def add() -> None:
        try:
            existing = objects.client.get_bucket_lifecycle_configuration(Bucket=objects.bucket).get("Rules", [])
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
                raise
            existing = []
        rules = [rule for rule in existing if rule.get("ID") != _RULE["ID"]] + [_RULE]
        objects.client.put_bucket_lifecycle_configuration(
            Bucket=objects.bucket, LifecycleConfiguration={"Rules": rules}
        )

    return _if_known(objects, f"lifecycle rule (aborts unfinished uploads after {UNFINISHED_DAYS} days)", add)


def _if_known(objects: S3Objects, what: str, ask: Callable[[], Any]) -> str:
    """Call ``ask``; RD3 also works where the server does not support the feature or the key may not set it."""
    from botocore.exceptions import ClientError

    with objects.errors():
        try:
            ask()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _UNKNOWN:
                return f"{objects.bucket}: this server does not support the {what} ({code})"
            if code in _FORBIDDEN:
                return f"{objects.bucket}: this key may not set the {what}; ask the bucket's owner to set it"
            raise
    return f"{objects.bucket}: {what} set"


def check_private(objects: S3Objects) -> None:
    """Raise :class:`StoreError` if an unsigned request can list the bucket."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    config = Config(signature_version=UNSIGNED, connect_timeout=3, read_timeout=20, retries={"max_attempts": 2})
    client = boto3.session.Session().client("s3", config=config)
    with objects.errors():
        try:
            client.list_objects_v2(Bucket=objects.bucket, MaxKeys=1)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                return
            raise
    raise StoreError(f"Bucket {objects.bucket!r} can be listed without credentials.", "remove its public policy or ACL")
