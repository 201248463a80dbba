"""Parquet files in the Hugging Face image layout: open them, read columns and class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rd3.errors import DataCorrupt
from rd3.foreign_files import broken_file
from rd3.lazy import pa, pq

DOWNLOAD_AGAIN = "download that file again from its source"


def open_parquet(path: Path) -> pq.ParquetFile:
    """A file whose data is read later; raises :class:`DataCorrupt` for an incomplete one."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        size, fact = path.stat().st_size, str(error).splitlines()[0]
        corrupt = DataCorrupt(f"{path} is not a complete Parquet file ({size} bytes: {fact}).", DOWNLOAD_AGAIN)
        raise broken_file(path) or corrupt from error


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Some columns of a file, in memory; raises :class:`DataCorrupt` for a damaged one."""
    try:
        return open_parquet(path).read(list(names))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataCorrupt(f"{path} is damaged ({str(error).splitlines()[0]}).", DOWNLOAD_AGAIN) from error


def parquet_class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str]:
    """The names of a ClassLabel column, from the metadata of a file's schema; empty if it states none."""
    try:
        features: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
