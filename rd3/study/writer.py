"""Write a study from a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rd3.errors import DataMissing, StoreError
from rd3.recipe import KINDS, Key
from rd3.store import STUDENT, Entry, ReadableStore, write_atomically, write_errors
from rd3.study.opened import RESULTS, SHEET, part_of, sheet_of
from rd3.study.rows import Row, RowsFile, pack, require_readable

LARGEST_IPC = 10
"""Files of sets with more images per class are left out."""
LARGEST_PART = 24 * 2**20
"""Maximum size of a file in bytes: a ResNet-18 with fp16 weights takes 22.8 MiB, one with fp32 weights 42 MiB."""


class Written(NamedTuple):
    new: int
    """Number of entries that are new in the study."""
    left_out: int
    """Number of requested entries whose files the study does not include."""


def write_study(
    source: ReadableStore, names: Iterable[tuple[str, Key]], folder: Path, *, networks: bool = False
) -> Written:
    """Add entries of ``source`` to a study; existing ones stay, and get files that they lack.

    ``networks``: include the files of teachers and statistics, which are the larger part.  ``results.parquet`` is
    written last.  Raises :class:`StoreError` for more results than a study may have, and like ``source.fetch`` for
    damaged files; if files are missing, only the entry is written.
    """
    results, left_out = Path(folder) / RESULTS, 0
    rows = _rows(results)
    known = len(rows)
    for kind, key in names:
        with _read_errors(kind, key):
            entry = source.find(kind, key)
        if entry is None:
            continue
        part = part_of(entry)
        row = rows.get((kind, key), Row(entry, {}))
        if part is None and not _is_whole(row) and row.entry.files == entry.files:
            row = Row(row.entry, _contents(source, entry))
        rows[kind, key] = row
        left_out += not (_is_whole(row) if part is None else _in_place(source, entry, Path(folder), part, networks))
    packed = pack(rows.values())
    require_readable(packed, results)
    with write_errors(folder):
        write_atomically(results, packed)
    return Written(len(rows) - known, left_out)


def _rows(results: Path) -> dict[tuple[str, Key], Row]:
    """Rows of an existing study."""
    if not results.is_file():
        return {}
    file = RowsFile(results)
    return {(kind, key): Row(entry, file.carried(kind, key)) for (kind, key), entry in file.entries.items()}


def _is_whole(row: Row) -> bool:
    """Whether a row has all files of its entry but the weights of a student."""
    return {*row.entry.files} - {STUDENT} <= set(row.carried)


def _in_place(source: ReadableStore, entry: Entry, folder: Path, name: Path, networks: bool) -> bool:
    """Write the files of an entry to ``name`` in the study, if they are to be included; True if they are there."""
    part = folder / name
    if part.is_file() or not _is_wanted(entry, networks):
        return part.is_file()
    contents = _contents(source, entry)
    sheet = contents.pop(SHEET, None)
    packed = pack([Row(entry, contents)])
    if not set(entry.files) <= {SHEET, *contents} or len(packed) > LARGEST_PART:
        return False
    with write_errors(folder):
        if sheet is not None:
            write_atomically(folder / sheet_of(entry), sheet)
        write_atomically(part, packed)
    return True


def _is_wanted(entry: Entry, networks: bool) -> bool:
    if KINDS[entry.kind].holds != "images":
        return networks
    ipc = entry.recipe.get("ipc")
    return isinstance(ipc, int) and ipc <= LARGEST_IPC


def _contents(source: ReadableStore, entry: Entry) -> dict[str, bytes]:
    """The entry's files by name, without the weights of a student; empty if they are missing."""
    try:
        with _read_errors(entry.kind, entry.key):
            folder = source.fetch(entry.kind, entry.key)
            return {name: (folder / name).read_bytes() for name in entry.files if name != STUDENT}
    except DataMissing:
        return {}


@contextlib.contextmanager
def _read_errors(kind: str, key: Key) -> Iterator[None]:
    """Convert an ``OSError`` to a :class:`StoreError` that names the entry whose files cannot be read."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"The files of {kind} {key[:12]} cannot be read{place}: {error.strerror or error}.",
            "check their permissions and their disk",
        ) from None
