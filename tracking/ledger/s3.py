"""An object store in an S3 bucket, on AWS or any S3-compatible server.

Endpoint and credentials come from boto3's usual sources.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from rd3.errors import StoreError, StoreUnavailable
from tracking.ledger.faults import has_password
from tracking.ledger.object_store import ObjectStore, Stored, Unfinished
from tracking.ledger.s3_faults import Refusal, failed, own_endpoint_fault, refused

T = TypeVar("T")

_THREADS = 24
"""Parallel requests for reading many objects."""
_TAKEN = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}
"""Error codes of a conditional write whose name is taken."""
_ABSENT = {"404", "NoSuchKey"}
"""Error codes of a request for an object that does not exist."""


@contextlib.contextmanager
def s3_errors(root: str, endpoint: str) -> Iterator[None]:
    """Convert errors of boto3 and the server to :class:`StoreError`; :class:`StoreUnavailable` if a retry may help."""
    from boto3.exceptions import Boto3Error, S3UploadFailedError
    from botocore import exceptions as botocore

    connections = (
        botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError, Boto3Error, RecursionError,
    )  # fmt: skip
    try:
        try:
            yield
        except S3UploadFailedError as error:  # boto3 wraps the server's error
            raise error.__context__ or error from None
    except botocore.ClientError as error:
        raise refused(Refusal.of(error), root, endpoint).error(StoreError, StoreUnavailable) from None
    except (botocore.BotoCoreError, Boto3Error, RecursionError) as error:
        fault = failed(error, root, endpoint, connects=isinstance(error, connections))
        raise fault.error(StoreError, StoreUnavailable) from None


class S3Objects(ObjectStore):
    """An object store in a bucket, or below a prefix in it."""

    def __init__(self, root: str):
        parts = urlparse(root)
        self.root = root.rstrip("/")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        if not self.bucket:
            raise StoreError(f"{root} does not name a bucket.", "write s3://bucket/prefix")

    @cached_property
    def client(self) -> Any:
        """The boto3 client, which is thread-safe; its short timeouts let a dead server be reported quickly."""
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=3, read_timeout=20, retries={"max_attempts": 3, "mode": "standard"}, max_pool_connections=32
        )
        try:
            with s3_errors(self.root, ""):
                client = boto3.session.Session().client("s3", config=config)
        except ValueError as error:
            raise StoreError(
                f"Cannot create an S3 client for {self.root} ({error}).",
                "write AWS_ENDPOINT_URL with http:// or https://, without quotation marks or spaces around it",
            ) from None
        if has_password(client.meta.endpoint_url):
            raise StoreError(
                "The address of the S3 server (AWS_ENDPOINT_URL, or endpoint_url of a profile) contains a password, "
                "which others could read.",
                "remove it; keys are given in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        fault = own_endpoint_fault(client.meta.endpoint_url)
        if fault is not None:
            raise fault.error(StoreError, StoreUnavailable)
        return client

    def errors(self) -> contextlib.AbstractContextManager[None]:
        return s3_errors(self.root, self.client.meta.endpoint_url)

    def asked(self, ask: Callable[[], T], refusals: Collection[str]) -> T | None:
        """The answer to a request; None if the server refuses it with one of these codes."""
        from botocore.exceptions import ClientError

        with self.errors():
            try:
                return ask()
            except ClientError as error:
                if error.response["Error"]["Code"] not in refusals:
                    raise
        return None

    def get(self, name: str) -> bytes | None:
        place = {"Bucket": self.bucket, "Key": self.prefix + name}
        return self.asked(lambda: self.client.get_object(**place)["Body"].read(), _ABSENT)

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        wanted = list(names)
        if len(wanted) == 1:  # Ctrl-C ends a request in this thread at once, and waits for those in others
            found = self.get(wanted[0])
            return {} if found is None else {wanted[0]: found}
        with ThreadPoolExecutor(_THREADS) as pool:
            pairs = list(zip(wanted, pool.map(self.get, wanted), strict=True))
        return {name: data for name, data in pairs if data is not None}

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        """See :meth:`ObjectStore.put`.

        The condition is atomic on AWS.  A server that first checks and then writes (Swift) may let several concurrent
        writers succeed, so a caller that needs exclusion must read the object back, as the lease does.
        """
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        content = {"Bucket": self.bucket, "Key": self.prefix + name, "Body": data}
        answer = self.asked(lambda: self.client.put_object(**content, **condition), _TAKEN if only_if_absent else ())
        return answer is not None

    def entries(self, prefix: str = "") -> Iterator[Stored]:
        with self.errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for item in (item for page in pages for item in page.get("Contents", ())):
                yield Stored(item["Key"][len(self.prefix) :], item["Size"], item["LastModified"].timestamp())

    def delete(self, name: str) -> None:
        with self.errors():
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def upload(self, name: str, source: Path) -> None:
        """Upload a file of any size, in parts where it is large; the object appears once it is complete.

        The transfer manager is given a path, because it would buffer the parts of an open file in memory, and used
        directly, because ``upload_file`` hides the server's error.
        """
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        with self.errors(), create_transfer_manager(self.client, TransferConfig()) as transfers:
            transfers.upload(str(source), self.bucket, self.prefix + name).result()

    def download(self, name: str, target: Path) -> bool:
        def download() -> bool:
            self.client.download_file(self.bucket, self.prefix + name, str(target))
            return True

        return bool(self.asked(download, _ABSENT))

    def url(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    def has_credentials(self) -> bool:
        import boto3

        with s3_errors(self.root, ""):
            credentials = boto3.session.Session().get_credentials()
        return credentials is not None

    def clock_ahead_s(self) -> float:
        asked = time.time()
        with self.errors():
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        return ahead_of(answer["ResponseMetadata"]["HTTPHeaders"], asked, time.time())

    def server(self) -> str:
        return f"the S3 server {self.client.meta.endpoint_url}"

    def unfinished(self, before: float) -> Iterator[Unfinished]:
        with self.errors():
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            uploads = (upload for page in pages for upload in page.get("Uploads", ()))
            for upload in (upload for upload in uploads if upload["Initiated"].timestamp() < before):
                one = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                parts = self.client.get_paginator("list_parts").paginate(**one)
                size = sum(part["Size"] for page in parts for part in page.get("Parts", ()))
                yield Unfinished(f"s3://{self.bucket}/{upload['Key']}", size, partial(self._abort, one))

    def _abort(self, upload: dict[str, str]) -> None:
        with self.errors():
            self.client.abort_multipart_upload(**upload)

    def prepare(self) -> Iterator[str]:
        from tracking.ledger.s3_bucket import add_lifecycle, block_public_access, create

        for step in (create, block_public_access, add_lifecycle):
            yield step(self)

    def check_private(self) -> Iterator[str]:
        from tracking.ledger.s3_bucket import check_private

        check_private(self)
        yield f"{self.bucket}: cannot be read without credentials"


def ahead_of(headers: Mapping[str, str], asked: float, answered: float) -> float:
    """Seconds by which this clock is ahead of the server's, from a response's headers; 0 without a ``Date`` header."""
    if "date" not in headers:
        return 0.0
    server = parsedate_to_datetime(headers["date"]).timestamp() + 0.5  # the header has whole seconds
    return (asked + answered) / 2 - server
