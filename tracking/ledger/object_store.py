"""Objects by name in a folder or in an S3 bucket: what the ledger is written with, and where large files are.

Both kinds promise the same: an object is seen whole or not at all, ``only_if_absent`` lets exactly one of many writers
win, and one listing names everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlparse

from rd3.errors import StoreError


class Stored(NamedTuple):
    """An object in a listing."""

    name: str
    size: int
    """Bytes."""
    changed: float
    """Seconds since 1970."""


class Unfinished(NamedTuple):
    """An upload in parts that was begun and not completed; no listing shows it."""

    stored: Stored
    url: str
    abort: Callable[[], None]


class ObjectStore(Protocol):
    """Bytes by name; a name is a relative path with ``/``.  All failures are :class:`StoreError`."""

    root: str

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, if it is one."""

    def get(self, name: str) -> bytes | None:
        """The object, or None."""

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of ``names`` that there are; many at a time where each waits for a network."""

    def put(self, name: str, data: bytes, only_if_absent: bool = False) -> bool:
        """Write; False if ``only_if_absent`` and the name is taken."""

    def upload(self, name: str, source: Path) -> None:
        """A file of any size; visible when it is whole."""

    def download(self, name: str, target: Path) -> bool:
        """An object of any size into a file; False if there is none."""

    def delete(self, name: str) -> None:
        """Remove; nothing happens where there is none."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """Every name that starts with ``prefix``, in no order."""

    def entries(self, prefix: str = "") -> Iterator[Stored]:
        """The same with sizes and times."""

    def url(self, name: str = "") -> str:
        """``file:///...`` or ``s3://bucket/...``."""

    def usable(self) -> bool:
        """Whether this process has the credentials that it takes."""

    def clock_ahead_s(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the server's; None where no other machine has a part."""

    def server(self) -> str:
        """What answers for it, as messages call it."""

    def unfinished(self) -> Iterator[Unfinished]:
        """Uploads that were begun and not completed."""

    def prepare(self) -> Iterator[str]:
        """Make what is missing, and say line by line what was done; does no harm where all is there."""

    def check_private(self) -> Iterator[str]:
        """Raise :class:`StoreError` if it can be read without credentials; else say that it cannot."""


def open_objects(root: str | Path) -> ObjectStore:
    """Objects below a folder (a path or ``file://``) or below ``s3://bucket/prefix``; contacts nobody yet."""
    text = str(root)
    if text.startswith("s3://"):
        from tracking.ledger.s3 import S3Objects

        return S3Objects(text)
    if "://" in text and not text.startswith("file://"):
        raise StoreError(f"Artifacts cannot live at {text}.", "give a folder or s3://bucket/prefix")
    return FolderObjects(local_path(text))


def is_direct(uri: str) -> bool:
    """Whether :func:`open_objects` reads this address, and not MLflow alone."""
    return uri.startswith(("s3://", "file:")) or ("://" not in uri and not uri.startswith("mlflow-artifacts:"))


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


class FolderObjects:
    """Objects as files."""

    def __init__(self, root: Path):
        self.folder = root.expanduser().absolute()
        self.root = str(self.folder)

    def get(self, name: str) -> bytes | None:
        with folder_errors(self.root):
            try:
                return (self.folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def get_many(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {name: self.get(name) for name in names}
        return {name: data for name, data in found.items() if data is not None}

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

    def upload(self, name: str, source: Path) -> None:
        target = self.folder / name
        with folder_errors(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
                os.replace(shutil.copyfile(source, Path(scratch) / target.name), target)

    def download(self, name: str, target: Path) -> bool:
        with folder_errors(self.root):
            try:
                shutil.copyfile(self.folder / name, target)
            except FileNotFoundError:
                return False
        return True

    def entries(self, prefix: str = "") -> Iterator[Stored]:
        for name in self.names(prefix):
            with folder_errors(self.root), contextlib.suppress(FileNotFoundError):
                found = (self.folder / name).lstat()
                yield Stored(name, found.st_size, found.st_mtime)

    def url(self, name: str = "") -> str:
        return (self.folder / name).as_uri()

    def usable(self) -> bool:
        return True

    def clock_ahead_s(self) -> None:
        return None

    def server(self) -> str:
        return f"the folder {self.folder}"

    def unfinished(self) -> Iterator[Unfinished]:
        return iter(())

    def prepare(self) -> Iterator[str]:
        return iter(())

    def check_private(self) -> Iterator[str]:
        return iter(())
