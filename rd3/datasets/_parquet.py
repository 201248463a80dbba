"""Parquet files in the Hugging Face image layout: ``image: struct<bytes, path>``, ``label: int64``."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rd3.datasets._classes import check_order
from rd3.datasets._records import Found, Records, file_stamp
from rd3.errors import DataCorrupt, DataMissing
from rd3.inputs.label_type import GIVE_INT64, require_exact
from rd3.inputs.parquet import DOWNLOAD_AGAIN, open_parquet, parquet_class_names
from rd3.lazy import pa, pq

if TYPE_CHECKING:
    from rd3.datasets._base import DatasetInfo

SHARD = re.compile(r"(?P<split>train|test|validation|valid|val)(?:-(?P<n>\d+)-of-(?P<of>\d+)(?:-[0-9a-f]+)?)?\.parquet")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("fine_label", "label", "labels")
_CONVERT = "convert it to the Hugging Face image layout"


def shards(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of each split, in order; raises if some of a split are missing.

    They are in the folder itself, in its ``data``, in a subfolder named after a configuration, as in ``plain_text`` of
    Hugging Face's copy of CIFAR-10, or in one for each split; several subfolders with the same split are refused.
    """
    found = _named(folder) or _named(folder / "data")
    if not found:
        configurations = {path: named for path in sorted(folder.glob("[!.]*/")) if (named := _named(path))}
        splits = [split for named in configurations.values() for split in named]
        if len(splits) > len(set(splits)):
            raise DataCorrupt(
                f"{folder} has Parquet files in several subfolders: {', '.join(path.name for path in configurations)}.",
                f"keep one of them, as {folder / 'data'}",
            )
        found = {split: entries for named in configurations.values() for split, entries in named.items()}
    for split, entries in found.items():
        of = entries[0][1]
        if [n for n, _of, _path in entries] != list(range(of)):
            raise DataMissing(
                f"{entries[0][2].parent} has {len(entries)} Parquet files of split {split}, "
                f"expected {of} by their names.",
                "download the missing files or remove unrelated ones",
            )
    return {split: [path for _n, _of, path in entries] for split, entries in found.items()}


def _named(folder: Path) -> dict[str, list[tuple[int, int, Path]]]:
    """(number, number of all, path) of the Parquet files in a folder whose names tell their split."""
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in sorted(folder.glob("[!.]*.parquet")):
        if match := SHARD.fullmatch(path.name):
            found.setdefault(match["split"], []).append((int(match["n"] or 0), int(match["of"] or 1), path))
    return {split: sorted(entries) for split, entries in found.items()}  # by number, also where names are not padded


def column_of(opened: pq.ParquetFile, path: Path, names: Sequence[str]) -> str:
    """The first of these columns that a file has; raises :class:`DataCorrupt` if it has none."""
    have = opened.schema_arrow.names
    for name in names:
        if name in have:
            return name
    raise DataCorrupt(f"{path} has the columns {', '.join(have)}; expected {' or '.join(names)}.", _CONVERT)


class _Layout(NamedTuple):
    label_column: str
    image_column: str
    counts: list[int]
    """Number of rows of each file."""


class ParquetRecords(Records):
    """One split in one or several Parquet files."""

    def __init__(self, files: Sequence[Path], info: DatasetInfo):
        self.files = list(files)
        self.info = info

    @cached_property
    def _layout(self) -> _Layout:
        """Metadata of the files; read on first use, so that unused splits are not opened."""
        opened = [open_parquet(path) for path in self.files]
        label_column = column_of(opened[0], self.files[0], LABEL_COLUMNS)
        for one, path in zip(opened, self.files, strict=True):
            if names := parquet_class_names(one.schema_arrow.metadata, label_column):
                check_order(names, self.info, str(path))
        return _Layout(
            label_column,
            column_of(opened[0], self.files[0], IMAGE_COLUMNS),
            [one.metadata.num_rows for one in opened],
        )

    def __len__(self) -> int:
        return sum(self._layout.counts)

    def where(self, index: int) -> str:
        ends = list(itertools.accumulate(self._layout.counts))
        file = bisect.bisect_right(ends, index)
        return f"{self.files[file]}, row {index - ends[file] + self._layout.counts[file]}"

    def stamp(self) -> list[str]:
        return [file_stamp(path) for path in self.files]

    def _batches(self, column: str) -> Iterator[Any]:
        """Arrow arrays of one column, in row order."""
        for path in self.files:
            try:
                for batch in open_parquet(path).iter_batches(batch_size=512, columns=[column]):
                    yield batch.column(0)
            except (pa.ArrowException, OSError) as error:
                raise DataCorrupt(f"{path} is damaged ({str(error).splitlines()[0]}).", DOWNLOAD_AGAIN) from error

    @cached_property
    def labels(self) -> np.ndarray:
        parts: list[np.ndarray] = []
        column, lowest = self._layout.label_column, set[int]()
        for array in self._batches(column):
            if not pa.types.is_integer(array.type):
                raise DataCorrupt(f"{self.files[0]}: column {column} is {array.type}, expected int64.", _CONVERT)
            what = f"labels in column {column!r} of {self.files[0]}"
            require_exact(array, what, self.info.num_classes, self.info.name)
            # A signed type of too few bits turns the label after its largest number into its lowest: 128 into -128.
            lowest.add(-(2 ** (array.type.bit_width - 1)))
            if array.null_count:
                row = sum(map(len, parts)) + array.is_valid().to_pylist().index(False)
                raise DataCorrupt(f"{self.where(row)} has no label.", DOWNLOAD_AGAIN)
            # Through the buffer, as pyarrow's conversion to NumPy imports pandas, which takes seconds.
            whole = array.cast(pa.int64())
            values = np.frombuffer(whole.buffers()[1], dtype=np.int64)
            parts.append(values[whole.offset : whole.offset + len(whole)])
        labels = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= self.info.num_classes))
        if len(wrong):
            row = int(wrong[0])
            wrapped, largest = int(labels.min()) in lowest, -int(labels.min()) - 1
            raise DataCorrupt(
                f"{self.where(row)}: label {labels[row]}, expected 0 to {self.info.num_classes - 1} "
                f"({len(wrong)} such rows)"
                f"{f': column {column!r} has a type that ends at {largest:,}' if wrapped else ''}.",
                GIVE_INT64 if wrapped else f"download the labelled files of {self.info.name}",
            )
        return labels

    def __iter__(self) -> Iterator[bytes]:
        row = 0
        for array in self._batches(self._layout.image_column):
            for encoded in self._bytes(array):
                if not encoded:
                    raise DataCorrupt(f"{self.where(row)} has no image bytes.", DOWNLOAD_AGAIN)
                yield encoded
                row += 1

    def _bytes(self, array: Any) -> list[bytes | None]:
        if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
            encoded: list[bytes | None] = array.field("bytes").to_pylist()
            return encoded
        raise DataCorrupt(
            f"{self.files[0]}: column {self._layout.image_column} is {array.type}, expected struct<bytes, path>.",
            _CONVERT,
        )


def find_parquet(folder: Path, info: DatasetInfo, test_names: Sequence[str]) -> Found | None:
    """The dataset in a folder of Parquet files, None if it has none; ``test_names``: names of the test split."""
    by_split = shards(folder)
    if not by_split:
        return None
    test = next((name for name in test_names if name in by_split), None)
    if "train" not in by_split or test is None:
        raise DataMissing(
            f"{folder} has Parquet files of {', '.join(sorted(by_split))}; "
            f"expected train and {' or '.join(test_names)}.",
            f"add the missing split of {info.name}",
        )
    source = _description(folder, info)
    return Found(
        folder, "parquet", ParquetRecords(by_split["train"], info), ParquetRecords(by_split[test], info), source
    )


def _description(folder: Path, info: DatasetInfo) -> str:
    """The description in ``dataset_info.json``; its class list is checked."""
    path = folder / "dataset_info.json"
    if not path.is_file():
        return ""
    try:
        plain = json.loads(path.read_text())
        lists = [plain[name] for name in ("wnids", "class_names") if isinstance(plain.get(name), list)]
        description = str(plain.get("description", ""))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataCorrupt(f"{path} is not a JSON object ({error}).", "download that file again or remove it") from error
    for names in lists:
        check_order(names, info, str(path))
    return description
