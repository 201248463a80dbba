"""Access to the files of a ledger entry: existence, verification and download.

An entry's ``artifact`` is a folder (``file://``, used in place), ``s3://bucket/prefix`` (read directly), or any URI
that MLflow supports, such as ``mlflow-artifacts:/`` of a tracking server (read through MLflow, which then needs
``tracking_uri``).  Remote files are cached in ``cache/<kind>/<key>``; every use verifies every sha256.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from rd3.errors import DataCorrupt, DataMissing, FilesNotExported, TrackingError
from rd3.store import Entry, check_files
from tracking.ledger.faults import without_password
from tracking.ledger.object_store import folder_errors, is_direct, open_objects
from tracking.runs.client import mlflow_errors, quiet_mlflow


def _name(entry: Entry) -> str:
    """Name of an entry in messages, such as ``set 0123456789ab``."""
    return f"{entry.kind} {entry.key[:12]}"


def _address(entry: Entry) -> str:
    if not entry.artifact:
        raise FilesNotExported(f"The ledger entry of {_name(entry)} has no artifact.", "run or import it again")
    return entry.artifact


def served(entry: Entry) -> bool:
    """Whether the tracking server serves the entry's files, so that they cannot be checked while it is unreachable."""
    uri = entry.artifact or ""
    return bool(uri) and not is_direct(uri)


def repository(uri: str, tracking_uri: str) -> Any:
    """MLflow's access to an artifact folder; raises :class:`TrackingError` without the package that it needs."""
    quiet_mlflow()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        return get_artifact_repository(uri, tracking_uri=tracking_uri)
    except ImportError as error:
        raise TrackingError(
            f"The files are at {without_password(uri)}, for which MLflow needs a package that is not installed here "
            f"({error}).",
            "install it on this machine and on every node, or let the tracking server pass files on: start it with "
            "--serve-artifacts and --artifacts-destination, and use a new experiment",
        ) from None


def exists(entry: Entry, tracking_uri: str = "") -> bool:
    """Whether all files of the entry exist, by name; takes at most one listing per folder and reads no file."""
    if not entry.artifact:
        return False
    uri = entry.artifact
    if is_direct(uri):
        objects = open_objects(uri)
        folder = objects.folder
        if folder is not None:
            return all((folder / name).is_file() for name in entry.files)
        return set(entry.files) <= set(objects.names())
    files = repository(uri, tracking_uri)
    parents = {PurePosixPath(name).parent.as_posix() for name in entry.files}
    with mlflow_errors(tracking_uri, uri):
        found = {item.path for parent in parents for item in files.list_artifacts(None if parent == "." else parent)}
    return set(entry.files) <= found


def check_source(entry: Entry, scratch: Path, tracking_uri: str = "") -> None:
    """Raise :class:`DataMissing` or :class:`DataCorrupt` unless the files are intact where they are stored.

    Remote files are downloaded anew, to a temporary folder in ``scratch``: a copy in a cache proves nothing.
    """
    with from_source(entry, scratch, tracking_uri):
        pass


@contextlib.contextmanager
def from_source(entry: Entry, scratch: Path, tracking_uri: str = "") -> Iterator[Path]:
    """A folder with the stored files, not those of a cache, checked like :func:`check_source`; temporary if remote."""
    if is_direct(_address(entry)) and open_objects(_address(entry)).folder is not None:
        yield fetch(entry, scratch, tracking_uri)
        return
    with folder_errors(scratch, "RD3_HOME"):
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=scratch, prefix=".source.")
    with temporary as folder:
        yield fetch(entry, Path(folder), tracking_uri)


def fetch(entry: Entry, cache: Path, tracking_uri: str = "") -> Path:
    """A folder on this machine with the verified files of ``entry``.

    A damaged copy in the cache is downloaded again, and so is a download that is damaged itself, once.  Raises
    :class:`DataMissing` or :class:`DataCorrupt` if that does not help: the source lacks files or is damaged, or this
    machine's disk or network is at fault (:func:`check_source` on another machine shows which).
    """
    uri = _address(entry)
    folder = open_objects(uri).folder if is_direct(uri) else None
    if folder is not None:
        check_files(folder, entry.files, _name(entry))
        return folder
    target = cache / entry.kind / entry.key
    with contextlib.suppress(DataMissing, DataCorrupt):
        return _cached(entry, uri, target, tracking_uri)
    return _cached(entry, uri, target, tracking_uri)


def _cached(entry: Entry, uri: str, target: Path, tracking_uri: str) -> Path:
    """The folder ``target`` with verified files, downloaded unless they are there."""
    if target.is_dir():
        try:
            check_files(target, entry.files, _name(entry))
            return target
        except (DataMissing, DataCorrupt):
            _remove(target)
    with folder_errors(target.parent.parent, "RD3_HOME"):
        # Not by tempfile, whose folders only their owner may enter: a home may belong to a group.
        staging = target.with_name(f".{entry.key[:12]}.{secrets.token_hex(8)}")
        staging.mkdir(parents=True)
    try:
        _download(entry, uri, staging, tracking_uri)
        check_files(staging, entry.files, _name(entry))
        try:
            staging.rename(target)
        except OSError:  # another process on this machine finished first
            check_files(target, entry.files, _name(entry))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def add(entry: Entry, path: Path, tracking_uri: str = "") -> None:
    """Upload a file under its name to the other files of an entry."""
    uri = _address(entry)
    if is_direct(uri):
        open_objects(uri).upload(path.name, path)
        return
    with mlflow_errors(tracking_uri, uri):
        repository(uri, tracking_uri).log_artifact(str(path))


def delete(uri: str, tracking_uri: str = "") -> None:
    """Delete an artifact folder, local or remote."""
    with mlflow_errors(tracking_uri, uri):
        repository(uri, tracking_uri).delete_artifacts()


def _remove(folder: Path) -> None:
    """Rename a folder, then delete it, so that other processes never see part of it."""
    with folder_errors(folder.parent.parent, "RD3_HOME"):
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged."))
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _download(entry: Entry, uri: str, folder: Path, tracking_uri: str) -> None:
    if is_direct(uri):
        source = open_objects(uri)
        for name in entry.files:
            with folder_errors(folder.parent.parent, "RD3_HOME"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                found = source.download(name, folder / name)
            if not found:
                raise DataMissing(f"{_name(entry)} lacks its file {name} at {uri}.", "run or import it again")
        return
    with mlflow_errors(tracking_uri, uri):
        repository(uri, tracking_uri).download_artifacts("", dst_path=str(folder))
