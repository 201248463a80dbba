"""The Parquet files of a study: a row for every entry, with some or all of its files.

Columns: ``kind`` and ``key``; ``entry``, :class:`rd3.store.Entry` as JSON, so that new fields need no new column;
``carried``, names and bytes of the included files.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rd3.errors import DataCorrupt, StoreError
from rd3.lazy import pa, pq
from rd3.recipe import KINDS, Key, kind_order
from rd3.store import Entry, read_entry

FORMAT = 1
MOST_BYTES = 512 * 2**20
"""Maximum unpacked size of one file, as a protection against decompression bombs."""
MOST_ROWS = 200_000
_GROUP = 128
"""Rows compressed together: more compress better, as curves are similar, but reading one row reads its group."""
_LEVEL = 9
"""Compression level of zstd: curves shrink to a quarter; higher levels save another 5 % in ten times the time."""
_REMEDY = "download that file again from its source"


class Row(NamedTuple):
    """An entry and the included files, by name."""

    entry: Entry
    carried: dict[str, bytes]


def _schema() -> pa.Schema:
    def non_null(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    file = pa.struct([non_null("name", pa.string()), non_null("data", pa.binary())])
    columns = [non_null(name, pa.string()) for name in ("kind", "key", "entry")]
    carried = non_null("carried", pa.list_(non_null("element", file)))
    return pa.schema([*columns, carried], metadata={"rd3.study": str(FORMAT)})


def pack(rows: Iterable[Row]) -> bytes:
    """The Parquet file of these rows, sorted by kind and key, without the locations of files."""
    ordered = sorted(rows, key=lambda row: (kind_order(row.entry.kind), row.entry.key))
    plain = [
        {
            "kind": entry.kind,
            "key": entry.key,
            "entry": json.dumps({**entry.model_dump(mode="json"), "artifact": None, "run_id": None}),
            "carried": [{"name": name, "data": data} for name, data in sorted(carried.items())],
        }
        for entry, carried in ordered
    ]
    stream = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(plain, schema=_schema()),
        stream,
        row_group_size=_GROUP,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return stream.getvalue()


class RowsFile:
    """One Parquet file of a study, checked on opening; the files in a row are read on demand.

    ``entries`` are in the order of the file.  Raises :class:`DataCorrupt` for files not written by :func:`pack`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._group: tuple[int, list[dict[str, bytes]]] = (-1, [])
        with self._reading() as file:
            _check_form(file, path)
            table = file.read(columns=["kind", "key", "entry"], use_threads=False).to_pylist()
        self.entries: dict[tuple[str, Key], Entry] = {}
        self._places: dict[tuple[str, Key], int] = {}
        for place, row in enumerate(table):
            entry = _entry(row, f"{path}, row {place}")
            name = (entry.kind, entry.key)
            if name in self.entries:
                raise DataCorrupt(f"{path} has {entry.kind} {entry.key[:12]} twice.", _REMEDY)
            self.entries[name], self._places[name] = entry, place

    def carried(self, kind: str, key: Key) -> dict[str, bytes]:
        """The files in the row of an entry, by name."""
        group, place = divmod(self._places[kind, key], _GROUP)
        if self._group[0] != group:
            with self._reading() as file:
                read = file.read_row_group(group, columns=["carried"], use_threads=False)
                lists = read.column("carried").to_pylist()
            self._group = group, [{one["name"]: one["data"] for one in files} for files in lists]
        return self._group[1][place]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataCorrupt(f"{self.path} is not a complete Parquet file: {reason}.", _REMEDY) from None


def _check_form(file: pq.ParquetFile, path: Path) -> None:
    """Check columns, version and sizes in the footer, before anything is unpacked."""
    found = (file.schema_arrow.metadata or {}).get(b"rd3.study", b"").decode(errors="replace")
    if not file.schema_arrow.equals(_schema()) or not re.fullmatch("[0-9]{1,9}", found):
        columns = ", ".join(file.schema_arrow.names[:8])
        raise DataCorrupt(
            f"{path} holds no results: its columns are {columns}; expected kind, key, entry and carried.",
            "give the results.parquet of `rd3 export-results --study`",
        )
    if int(found) > FORMAT:
        raise DataCorrupt(f"{path} has format {found}, this version reads up to {FORMAT}.", "upgrade rd3")
    groups, excess = _groups(file.metadata), _excess(file.metadata)
    if excess:
        raise DataCorrupt(f"{path} {excess}.", _REMEDY)
    # Reads all pages and discards them; raises for a damaged footer, for which reading a column aborts the process.
    file.scan_contents()
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    # With dictionaries, a small file could unpack to any size.
    has_dictionaries = any("DICTIONARY" in encoding for chunk in chunks for encoding in chunk.encodings)
    if has_dictionaries or any(group.num_rows != _GROUP for group in groups[:-1]):
        raise DataCorrupt(f"{path} does not have the layout of `rd3 export-results --study`.", _REMEDY)


def _groups(metadata: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    return [metadata.row_group(number) for number in range(metadata.num_row_groups)]


def _excess(metadata: pq.FileMetaData) -> str:
    """What of a file is above the limits, as the end of a sentence; empty if nothing is."""
    size, count = sum(abs(group.total_byte_size) for group in _groups(metadata)), metadata.num_rows
    if size <= MOST_BYTES and count <= MOST_ROWS:
        return ""
    limits = f"at most {MOST_BYTES / 2**20:.0f} MiB in {MOST_ROWS} rows"
    return f"would unpack to {size / 2**20:.0f} MiB in {count} rows; expected {limits}"


def require_readable(packed: bytes, path: Path) -> None:
    """Raise :class:`StoreError` for a file that :class:`RowsFile` would refuse to read, before it is written."""
    excess = _excess(pq.read_metadata(io.BytesIO(packed)))
    if excess:
        raise StoreError(f"{path} {excess}.", "export fewer results into one study")


def _entry(row: dict[str, Any], where: str) -> Entry:
    entry = read_entry(row["entry"], where, _REMEDY)
    if (entry.kind, entry.key) != (row["kind"], row["key"]):
        raise DataCorrupt(f"{where}: {row['kind']} {row['key'][:12]} does not match its entry.", _REMEDY)
    if entry.kind not in KINDS or not re.fullmatch("[0-9a-f]{64}", entry.key):
        raise DataCorrupt(f"{where}: {entry.kind[:20]!r} {entry.key[:12]!r} is not a kind and a key.", _REMEDY)
    return entry
