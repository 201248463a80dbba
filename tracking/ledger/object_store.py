"""An object store in a folder or an S3 bucket, which holds the ledger and large files.

Both implementations give the same guarantees: objects appear atomically, exactly one of several writers with
``only_if_absent`` succeeds, and one listing names all objects.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from rd3.errors import DataCorrupt, StoreError, is_disk_full
from rd3.store import stage

T = TypeVar("T")


class Stored(NamedTuple):
    """An object in a listing."""

    name: str
    size: int
    """Bytes."""
    changed: float
    """Seconds since 1970."""


class Unfinished(NamedTuple):
    """An upload in parts to S3 that was not completed; object listings do not show it."""

    url: str
    size: int
    """Bytes of the parts that have arrived."""
    abort: Callable[[], None]


class ObjectStore(Protocol):
    """Maps names (relative paths with ``/``) to bytes; the defaults below are those of a folder.

    All methods raise :class:`StoreError` on failure.
    """

    root: str
    folder: Path | None = None
    """The folder on this machine that holds the objects, or None."""

    def get(self, name: str) -> bytes | None:
        """The content of an object, or None."""

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Contents by name of the objects that exist; requests to a server run in parallel."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        """Write an object; returns False, without writing, if ``only_if_absent`` and the name is taken."""

    def upload(self, name: str, source: Path) -> None:
        """Copy a file of any size into an object, which appears once it is complete."""

    def download(self, name: str, target: Path) -> bool:
        """Copy an object of any size into a file; returns False if there is no such object."""

    def delete(self, name: str) -> None:
        """Delete an object; a missing one is ignored."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names that start with ``prefix``, in no particular order."""
        return (stored.name for stored in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Stored]:
        """Names that start with ``prefix`` with their sizes and times, in no particular order."""

    def url(self, name: str = "") -> str:
        """``file:///...`` or ``s3://bucket/...``."""

    def has_credentials(self) -> bool:
        """Whether this process has the credentials that the store needs; always true for a folder."""
        return True

    def clock_ahead_s(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the server's; None for a folder."""
        return None

    def server(self) -> str:
        """The server or folder, as named in messages."""

    def unfinished(self, before: float) -> Iterator[Unfinished]:
        """Multipart uploads that began before a time (seconds since 1970) and are not completed."""
        return iter(())

    def prepare(self) -> Iterator[str]:
        """Create what is missing and yield a line per step; idempotent."""
        return iter(())

    def check_private(self) -> Iterator[str]:
        """Yield a line confirming that reading requires credentials; raises :class:`StoreError` if it does not."""
        return iter(())


def open_objects(root: str | Path) -> ObjectStore:
    """The object store at a folder (a path or ``file://``) or at ``s3://bucket/prefix``; makes no request yet."""
    text = str(root)
    if text.startswith("s3://"):
        from tracking.ledger.s3 import S3Objects

        return S3Objects(text)
    if "://" in text and not text.startswith("file://"):
        raise StoreError(f"Artifacts cannot be stored at {text}.", "give a folder or s3://bucket/prefix")
    return FolderObjects(local_path(text))


def read_as(objects: ObjectStore, name: str, parse: Callable[[bytes], T], what: str, fix: str) -> T | None:
    """A parsed object, or None if there is none; raises :class:`DataCorrupt` if ``parse`` raises :class:`ValueError`.

    ``what`` the object is begins the message of that error, and ``fix`` is its fix.
    """
    raw = objects.get(name)
    return None if raw is None else parsed(raw, parse, f"{what} {objects.root}/{name}", fix)


def parsed(raw: bytes, parse: Callable[[bytes], T], what: str, fix: str) -> T:
    """A parsed object; errors as :func:`read_as`."""
    try:
        return parse(raw)
    except ValueError:
        raise DataCorrupt(f"{what} cannot be read.", fix) from None


def json_with(*names: str) -> Callable[[bytes], dict[str, Any]]:
    """A ``parse`` for :func:`read_as`: a JSON object that has at least these members."""

    def parse(raw: bytes) -> dict[str, Any]:
        found = json.loads(raw)
        if not isinstance(found, dict) or not set(names) <= found.keys():
            raise ValueError(f"expected an object with {', '.join(names)}")
        return found

    return parse


def is_direct(uri: str) -> bool:
    """Whether :func:`open_objects` supports this address; files at others are accessible through MLflow only."""
    return uri.startswith(("s3://", "file:")) or ("://" not in uri and not uri.startswith("mlflow-artifacts:"))


def local_path(uri: str) -> Path:
    """The path of a ``file://`` URI or a plain path."""
    return Path(unquote(urlparse(uri).path)) if uri.startswith("file:") else Path(uri)


@contextlib.contextmanager
def folder_errors(root: str | Path, variable: str = "RD3_ARTIFACTS") -> Iterator[None]:
    """Convert an :class:`OSError` to a :class:`StoreError`; the environment ``variable`` sets where the folder is."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        action = "free space there" if is_disk_full(error) else "make that folder writable"
        raise StoreError(
            f"Cannot use the folder {root}: {reason}.", f"{action}, or set {variable} to another folder"
        ) from None


class FolderObjects(ObjectStore):
    """An object store whose objects are files."""

    folder: Path

    def __init__(self, root: Path):
        self.folder = root.expanduser().absolute()
        self.root = str(self.folder)

    def get(self, name: str) -> bytes | None:
        with folder_errors(self.root), contextlib.suppress(FileNotFoundError):
            return (self.folder / name).read_bytes()
        return None

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {name: self.get(name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        target = self.folder / name
        with folder_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            neighbour = stage(target, data)  # a temporary file in the same folder
            try:
                if only_if_absent:
                    self._link(neighbour, target)
                else:
                    os.replace(neighbour, target)
            except FileExistsError:
                return False
            finally:
                neighbour.unlink(missing_ok=True)
        return True

    def _link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which is atomic, and fails if the name is taken."""
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            raise StoreError(
                f"The file system of the folder {self.root} has no hard links, which RD3 needs to write a file once.",
                "set RD3_ARTIFACTS to a folder on another file system (FAT and exFAT have none)",
            ) from None

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

    def upload(self, name: str, source: Path) -> None:
        target = self.folder / name
        with folder_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
                os.replace(shutil.copyfile(source, Path(scratch) / target.name), target)

    def download(self, name: str, target: Path) -> bool:
        with folder_errors(self.root), contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self.folder / name, target)
            return True
        return False

    def entries(self, prefix: str = "") -> Iterator[Stored]:
        for name in self.names(prefix):
            with folder_errors(self.root), contextlib.suppress(FileNotFoundError):
                found = (self.folder / name).lstat()
                yield Stored(name, found.st_size, found.st_mtime)

    def url(self, name: str = "") -> str:
        return (self.folder / name).as_uri()

    def server(self) -> str:
        return f"the folder {self.folder}"
