"""Read a set from a Parquet file in the Hugging Face image layout, as RD3 exports it and the hub shares it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rd3.errors import BadValue
from rd3.foreign_files import require_whole
from rd3.inputs.notes import Note, Say
from rd3.inputs.parquet import open_parquet, parquet_class_names, read_columns
from rd3.lazy import pa, torch
from rd3.synthetic_set.tensor_file import SOFT_LABEL_KIND, SOFT_NAMES, ForeignSet, foreign_set

_IMAGES, _LABELS = ("image", "images", "img"), ("label", "labels", "fine_label")


def read_parquet_file(path: Path, classes: int, say: Say) -> ForeignSet:
    """Images, labels and soft labels of a ``.parquet`` file; no code in it is executed.

    Columns: ``image`` (struct with the encoded ``bytes``), ``label`` (integers; the names of a ClassLabel are the class
    order), and at most one with ``classes`` floats for each image, under a name for soft labels such as
    ``soft_labels``.  ``say`` receives, as a warning, the names of what is not read.  Raises :class:`DataMissing`,
    :class:`DataCorrupt` or :class:`BadValue`.
    """
    require_whole(path)
    schema = open_parquet(path).schema_arrow
    image, label = (_first(schema.names, names, path) for names in (_IMAGES, _LABELS))
    soft = [name for name in schema.names if SOFT_NAMES.search(name.lower()) and name not in (image, label)]
    table = read_columns(path, [image, label, *soft])
    left = sorted(set(schema.names) - {image, label, *soft})
    if left:
        say(Note(f"not read from {path.name}: {', '.join(left)}", doubtful=True))
    names = parquet_class_names(schema.metadata, label)
    beside = {name: _values(table.column(name)) for name in soft} | _own_notes(schema.metadata or {})
    beside |= {"class_names": names} if names else {}
    pictures = _pictures(table.column(image), f"Column {image!r} of {path.name}")
    return foreign_set(path.name, pictures, table.column(label), beside, classes, say)


def _first(columns: Sequence[str], names: Sequence[str], path: Path) -> str:
    for name in names:
        if name in columns:
            return name
    have = ", ".join(columns[:5]) or "no columns"
    raise BadValue(f"{path.name} has {have}, expected a column {names[0]!r}.", "rename the column")


def _pictures(column: Any, what: str) -> list[dict[str, bytes]]:
    """Encoded images, one a row; paths in the file are not followed, as it may come from others."""
    fix = "write it with the datasets library, whose Image feature is this layout, with the images embedded"
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise BadValue(f"{what} is {column.type}, expected a struct with encoded bytes.", fix)
    encoded: list[Any] = [(row or {}).get("bytes") for row in column.to_pylist()]
    if None in encoded:
        raise BadValue(f"{what} has no image bytes in row {encoded.index(None)}.", fix)
    return [{"bytes": each} for each in encoded]


def _values(column: Any) -> Any:
    """A column of float lists of one length as a tensor of their type; others as a list."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type) or column.null_count or not len(column):
        return column.to_pylist()
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    width, rest = divmod(len(flat), len(column))
    if rest or flat.null_count or any(len(row) != width for row in column):
        return column.to_pylist()
    return torch.from_numpy(flat.to_numpy(zero_copy_only=False).copy()).reshape(len(column), width)


def _own_notes(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What RD3 states of soft labels in its exports."""
    try:
        return {SOFT_LABEL_KIND: json.loads(metadata[b"rd3"])[SOFT_LABEL_KIND]}
    except (KeyError, TypeError, ValueError):
        return {}
