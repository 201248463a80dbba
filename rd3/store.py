"""Stores of results: the interfaces that ``rd3`` uses, and an implementation in a plain folder.

An :class:`Entry` records a finished recipe (:mod:`rd3.recipe`: everything that determines a teacher, statistics, a set
or an evaluation): its result, its files with their sha256, and its content digest.  It is written last and only if
absent, so that everything with an entry is complete.  Entries are found by the recipe's kind and key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import string
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pydantic import ValidationError, field_validator

from rd3.errors import DataCorrupt, DataMissing, StoreError
from rd3.lazy import pa, pq
from rd3.recipe import KINDS, Recipe
from rd3.values import Frozen, first_mistake

STUDENT = "student.safetensors"
"""File of an evaluation with the weights of its student, if these were kept."""


class Entry(Frozen):
    """Ledger entry of a finished recipe."""

    kind: str
    key: str
    recipe: dict[str, Any]
    result: dict[str, Any]
    """Scalar results, depending on the kind: ``top1_pct``, ``correct``, ``wall_s`` ..."""
    files: dict[str, str] = {}
    """File name (relative, with /) to sha256."""
    content: str | None = None
    """Digest of the decoded content: pixels and labels, or weights."""
    artifact: str | None = None
    """URI of the files, in a form that the store understands; None if they are stored with the entry."""
    run_id: str | None = None
    """Id of the MLflow run that shows the result, if there is one."""
    formerly: str | None = None
    """The key under which the files were written, if it has an older format."""
    made: dict[str, Any] = {}
    """Provenance that does not affect results: code version, device, threads, host, finished_at."""
    digest: str | None = None
    """sha256 of key, result, files and content (:meth:`sealed`); None in entries of RD3 0.1."""

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, result: dict[str, Any], content: str | None, **made: Any) -> Entry:
        """The entry of a recipe whose files are in ``folder``; ``made`` is its provenance."""
        plain = recipe.model_dump(mode="json")
        return cls(
            kind=recipe.kind, key=recipe.key, recipe=plain, result=result, files=sha256_files(folder), content=content,
            made=made,
        )  # fmt: skip

    def sealed(self) -> Entry:
        """The entry with the digest of what it holds now."""
        named = {"kind", "key", "result", "files", "content"}
        text = json.dumps(self.model_dump(mode="json", include=named), sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})

    @property
    def altered(self) -> bool:
        """Whether the entry was changed after it got its digest."""
        return self.digest is not None and self.sealed().digest != self.digest

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        """Reject file names outside the entry's folder, as entries may come from elsewhere."""
        for name in files:
            path = PurePosixPath(name)
            plain = name.isprintable() and "\\" not in name and str(path) == name != "."
            if not plain or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name!r} is not a relative file name")
            if any(str(parent) in files for parent in path.parents):
                raise ValueError(f"{name!r} is inside another file")
        return files


class EntryLookup(Protocol):
    """Entries by kind and key."""

    def find(self, kind: str, key: str) -> Entry | None:
        """The entry, or None if there is none."""


class ReadableStore(EntryLookup, Protocol):
    """A store from which entries and files are read, by kind and key."""

    def fetch(self, kind: str, key: str) -> Path:
        """A local folder with the verified files; raises :class:`DataMissing` or :class:`DataCorrupt`."""


def read_entry(raw: bytes | str, where: str, remedy: str) -> Entry:
    """Parse an entry and compare it with its digest.

    Raises :class:`DataCorrupt`, with ``where`` as the name of the entry and ``remedy`` as the fix.
    """
    try:
        entry = Entry.model_validate_json(raw)
    except ValidationError as error:
        raise DataCorrupt(f"{where} cannot be read: {first_mistake(error)}.", remedy) from None
    if entry.altered:
        raise DataCorrupt(f"{where} was changed after it was written: its digest does not match.", remedy)
    return entry


def existing(store: EntryLookup, kind: str, key: str) -> Entry:
    """The entry of a recipe; raises :class:`DataMissing` if there is none."""
    entry = store.find(kind, key)
    if entry is None:
        raise DataMissing(f"The store has no {kind} {key[:12]}.", "make or import it first")
    return entry


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def visible_files(folder: Path) -> Iterator[Path]:
    """Relative paths of the files below ``folder``, sorted, but of hidden ones, which tools and killed writes leave."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return (name for name in names if not any(part.startswith(".") for part in name.parts))


def sha256_files(folder: Path) -> dict[str, str]:
    """Relative name to sha256, for every file below ``folder`` but hidden ones."""
    return {name.as_posix(): sha256_file(folder / name) for name in visible_files(folder)}


def is_key(name: str) -> bool:
    """Whether the stem of a file name is a key, and not that of a copy (``KEY 2``, ``KEY.sync-conflict-...``)."""
    return not set(name) - set(string.hexdigits)


@contextlib.contextmanager
def write_errors(place: object, fix: str = "free space or choose another folder", what: str = "") -> Iterator[None]:
    """Convert an ``OSError`` (no space, no permission) to a :class:`StoreError` that names the place.

    ``what`` is written there, such as ``the report``.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(f"Cannot write {what}{' ' * bool(what)}to {place}: {_reason(error)}.", fix) from None


def _reason(error: OSError) -> str:
    """Why it failed; the first of several reasons that copying a folder collects."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return re.sub(r"^\[Errno \d+\] |: '.*", "", str(error.args[0][0][2]))
    return error.strerror or str(error)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of ``target`` when the block ends, and is removed if the block fails.

    An empty folder, which may be a mount point or the shell's own, stays and gets its content.
    """
    target = target.resolve()
    empty = target.is_dir() and not any(target.iterdir())
    staging = target / ".new" if empty else target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        if empty:
            for path in list(staging.iterdir()):
                os.replace(path, target / path.name)
        else:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a temporary file, flush it to disk and rename it, so that readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    staged = stage(path, raw)
    try:
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def stage(path: Path, data: bytes) -> Path:
    """Write a hidden file beside ``path``, flush it to disk and return it; its permissions obey the umask.

    The functions of :mod:`tempfile` would make a file that only its owner can read.
    """
    staged = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    try:
        with open(staged, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:
        staged.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a write, which does not know it
            error.filename = str(path)
        raise
    return staged


def write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """Write the rows of a training curve to a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(curve), path)


def check_files(
    folder: Path, files: dict[str, str], what: str, fix: str = "delete it and run or import it again"
) -> None:
    """Raise :class:`DataMissing` or :class:`DataCorrupt` for the first file that is missing or has another hash."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DataMissing(f"{what} lacks its file {name}.", fix)
        found = sha256_file(path)
        if found != expected:
            raise DataCorrupt(f"{what}: file {name} has sha256 {found[:12]}, its record says {expected[:12]}.", fix)


def now() -> str:
    """Current UTC time in ISO 8601, to seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class FolderStore:
    """A relocatable store in one folder: ``by-key/<kind>/<key>.json`` and ``artifacts/<kind>/<key>/``."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def names(self) -> list[tuple[str, str]]:
        """(kind, key) of all entries in the order of ``KINDS``, without converted ones of an older format."""
        return [
            (kind, key) for kind in KINDS for key in self._listed("by-key", kind, self._listed("former-keys", kind))
        ]

    def _listed(self, folder: str, kind: str, but: Collection[str] = ()) -> list[str]:
        found = (path.stem for path in sorted((self.root / folder / kind).glob("*.json")))
        return [key for key in found if is_key(key) and key not in but]

    def _entry_path(self, kind: str, key: str) -> Path:
        return self.root / "by-key" / kind / f"{key}.json"

    def _artifact(self, kind: str, key: str) -> Path:
        return self.root / "artifacts" / kind / key

    def find(self, kind: str, key: str) -> Entry | None:
        path = self._entry_path(kind, key)
        if not path.is_file():
            return None
        return read_entry(path.read_bytes(), f"Entry {path}", "delete that file; its recipe runs again")

    def fetch(self, kind: str, key: str) -> Path:
        entry = existing(self, kind, key)
        folder = self._artifact(kind, key)
        if entry.formerly is not None and not folder.is_dir():
            folder = self._artifact(kind, entry.formerly)
        check_files(folder, entry.files, f"{kind} {key[:12]}")
        return folder

    def put(self, entry: Entry, folder: Path) -> Entry:
        known = self.find(entry.kind, entry.key)
        if known is not None:
            return known
        target = self._artifact(entry.kind, entry.key)
        if folder.resolve() != target.resolve():
            # The student of an evaluation stays behind where the entry is without it.
            ignore = None if STUDENT in entry.files else shutil.ignore_patterns(STUDENT)
            with write_errors(self.root), new_folder(target) as staging:
                shutil.copytree(folder, staging, ignore=ignore, dirs_exist_ok=True)
        return self.replace(entry)

    def replace(self, entry: Entry) -> Entry:
        """Write ``entry`` with its digest in place of the one that its key has; its files are in the store."""
        entry = entry.model_copy(update={"artifact": None, "run_id": None}).sealed()
        with write_errors(self.root):
            write_atomically(
                self._entry_path(entry.kind, entry.key), json.dumps(entry.model_dump(mode="json"), indent=1)
            )
        return entry
