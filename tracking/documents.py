"""Small named documents in a folder or in an S3 bucket: what the ledger is written with.

Both kinds promise the same three things: a document is seen whole or not at all, ``only_if_absent`` lets exactly one
of many writers win, and one listing names everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from rd3.errors import StoreAway, StoreError


class Documents(Protocol):
    """Bytes by name; a name is a relative path with ``/``.  All failures are :class:`StoreError`."""

    root: str

    def get(self, name: str) -> bytes | None:
        """The document, or None."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        """Write; False if ``only_if_absent`` and somebody was there first."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Every name that starts with ``prefix``, in no order."""

    def delete(self, name: str) -> None:
        """Remove; nothing happens where there is none."""


def open_documents(root: str | Path) -> Documents:
    """Documents below a folder (a path or ``file://``) or below ``s3://bucket/prefix``; contacts nobody yet."""
    text = str(root)
    if text.startswith("s3://"):
        return S3Documents(text)
    if "://" in text and not text.startswith("file://"):
        raise StoreError(f"Artifacts cannot live at {text}.", "give a folder or s3://bucket/prefix")
    return FolderDocuments(local_path(text))


def local_path(uri: str) -> Path:
    """The path that a ``file://`` URI or a plain path means."""
    return Path(unquote(urlparse(uri).path)) if uri.startswith("file:") else Path(uri)


@contextlib.contextmanager
def folder_errors(root: str | Path) -> Iterator[None]:
    """Turn what a disk does into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free space there, or set RD3_ARTIFACTS to another folder"
        else:
            fix = "make that folder writable, or set RD3_ARTIFACTS to another one"
        raise StoreError(f"Cannot use the artifact folder {root}: {reason}.", fix) from None


class FolderDocuments:
    """Documents as files."""

    def __init__(self, root: Path):
        self.folder = root.expanduser().absolute()
        self.root = str(self.folder)

    def get(self, name: str) -> bytes | None:
        with folder_errors(self.root):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        target = self.folder / name
        with folder_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, neighbour = tempfile.mkstemp(dir=target.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                if not only_if_absent:
                    os.replace(neighbour, target)
                    return True
                try:
                    os.link(neighbour, target)  # fails if the name is taken, and shows the whole file at once
                except FileExistsError:
                    return False
                return True
            finally:
                Path(neighbour).unlink(missing_ok=True)

    def names(self, prefix: str = "") -> Iterator[str]:
        start = self.folder / prefix.rpartition("/")[0]

        def unreadable(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        with folder_errors(self.root):
            for where, folders, files in os.walk(start, onerror=unreadable):
                folders[:] = [folder for folder in folders if not folder.startswith(".")]
                base = Path(where).relative_to(self.folder).as_posix()
                for file in files:
                    name = file if base == "." else f"{base}/{file}"
                    if name.startswith(prefix) and not file.startswith("."):
                        yield name

    def delete(self, name: str) -> None:
        with folder_errors(self.root):
            (self.folder / name).unlink(missing_ok=True)


_REFUSED = {"403", "401", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden"}
_TAKEN = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}
_ABSENT = {"404", "NoSuchKey"}
_BUSY = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError"}


@contextlib.contextmanager
def s3_errors(root: str, endpoint: str) -> Iterator[None]:
    """Turn what an S3 server, or its absence, does into one sentence."""
    from boto3.exceptions import Boto3Error, S3UploadFailedError
    from botocore import exceptions as botocore

    try:
        try:
            yield
        except S3UploadFailedError as error:  # boto3's wrapping of what the server said
            raise error.__context__ or error from None
    except (botocore.NoCredentialsError, botocore.PartialCredentialsError):
        raise StoreError(
            f"There are no S3 credentials for {root}.", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except botocore.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            bucket = urlparse(root).netloc
            raise StoreError(
                f"{endpoint} has no bucket {bucket!r}.", "`rd3 infra init` makes it; or set RD3_ARTIFACTS to another"
            ) from None
        if code == "RequestTimeTooSkewed":
            raise StoreError(
                f"{endpoint} refuses us because its clock and ours differ by minutes ({code}).",
                "set the clock (NTP) on both machines",
            ) from None
        if code in _REFUSED:
            raise StoreError(
                f"{endpoint} refuses the S3 credentials for {root} ({code}).",
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what that key may do",
            ) from None
        busy = code in _BUSY or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
        raise (StoreAway if busy else StoreError)(
            f"{endpoint} failed on {root} ({code or error}).", "look into the log of that server"
        ) from None
    except (botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError, Boto3Error) as error:
        raise StoreAway(
            f"The S3 server {endpoint} does not answer ({type(error).__name__}).",
            "start it, or set AWS_ENDPOINT_URL to the right one",
        ) from None
    except botocore.BotoCoreError as error:
        raise StoreError(f"S3 cannot be used for {root}: {error}.", "check the AWS_ variables") from None


def s3_credentials() -> bool:
    """Whether this process has credentials for S3, wherever boto3 finds them."""
    import boto3

    return boto3.session.Session().get_credentials() is not None


class S3Documents:
    """Documents as objects.  Endpoint and credentials come from where boto3 always finds them."""

    def __init__(self, root: str):
        parts = urlparse(root)
        self.root = root.rstrip("/")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        if not self.bucket:
            raise StoreError(f"{root} names no bucket.", "write s3://bucket/prefix")
        self._made: Any = None

    @property
    def client(self) -> Any:
        """The boto3 client, which threads may share; short timeouts, so that a dead server is named at once."""
        if self._made is None:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError

            config = Config(
                connect_timeout=3,
                read_timeout=20,
                retries={"max_attempts": 3, "mode": "standard"},
                max_pool_connections=32,
            )
            try:
                self._made = boto3.session.Session().client("s3", config=config)
            except (BotoCoreError, ValueError) as error:
                raise StoreError(
                    f"No S3 client can be made for {self.root} ({error}).", "check the AWS_ variables"
                ) from None
        return self._made

    def errors(self) -> contextlib.AbstractContextManager[None]:
        return s3_errors(self.root, self.client.meta.endpoint_url)

    def get(self, name: str) -> bytes | None:
        from botocore.exceptions import ClientError

        with self.errors():
            try:
                data: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
                return data
            except ClientError as error:
                if error.response["Error"]["Code"] in _ABSENT:
                    return None
                raise

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        """As the protocol says.  AWS decides atomically; a server that looks before it writes (Swift) may tell several
        writers of the same moment yes, so whoever must be alone reads back and goes on watching, as the lease does.
        """
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self.errors():
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data, **condition)
            except ClientError as error:
                if only_if_absent and error.response["Error"]["Code"] in _TAKEN:
                    return False
                raise
        return True

    def names(self, prefix: str = "") -> Iterator[str]:
        with self.errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"][len(self.prefix) :]

    def delete(self, name: str) -> None:
        with self.errors():
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def upload(self, name: str, source: Path) -> None:
        """A file of any size, in parts where it is large; visible when it is whole.

        By name, because of an open file the parts wait in memory; and past ``upload_file``, which hides what S3 said.
        """
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        with self.errors(), create_transfer_manager(self.client, TransferConfig()) as transfers:
            transfers.upload(str(source), self.bucket, self.prefix + name).result()

    def download(self, name: str, target: Path) -> bool:
        """A large object into a file; False if there is none."""
        from botocore.exceptions import ClientError

        with self.errors():
            try:
                self.client.download_file(self.bucket, self.prefix + name, str(target))
            except ClientError as error:
                if error.response["Error"]["Code"] in _ABSENT:
                    return False
                raise
        return True
