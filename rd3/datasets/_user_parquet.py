"""Parquet files of a dataset that a user registers: the class list that they state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rd3.datasets._parquet import LABEL_COLUMNS, column_of
from rd3.errors import BadValue
from rd3.inputs.files import shortened
from rd3.inputs.label_type import largest_exact
from rd3.inputs.notes import Note, Say
from rd3.inputs.parquet import open_parquet, parquet_class_names, read_columns
from rd3.lazy import pa


def stated_classes(folder: Path, splits: Mapping[str, Sequence[Path]], say: Say) -> tuple[str, ...]:
    """The names of the ClassLabel column, in order; without names the label numbers from 0.  ``say`` receives which.

    ``splits``: the folder's files by the split that their names state (:func:`rd3.datasets._parquet.shards`).  Raises
    :class:`BadValue` for files whose names do not tell the split, labels that are not numbers, and fewer than two
    classes.
    """
    if "train" not in splits:
        raise BadValue(
            f"{folder} holds Parquet files, but none of the training images by their names.",
            "name them train-00000-of-00001.parquet and test-00000-of-00001.parquet, as the hub does",
        )
    opened = open_parquet(splits["train"][0])
    column = column_of(opened, splits["train"][0], LABEL_COLUMNS)
    names = parquet_class_names(opened.schema_arrow.metadata, column)
    kind = opened.schema_arrow.field(column).type
    if not pa.types.is_integer(kind):
        raise BadValue(
            f"Column {column!r} of {splits['train'][0]} is {kind}, expected class numbers.",
            "cast it to a ClassLabel: dataset.class_encode_column(...) of the datasets library",
        )
    if not names:
        parts = [read_columns(path, [column]).column(0) for path in splits["train"]]
        labels = np.concatenate([part.drop_null().to_numpy() for part in parts]).astype(np.int64)
        most = int(labels.max(initial=-1))
        if not 0 < most < len(labels) or any(part.null_count for part in parts):
            raise BadValue(
                f"Column {column!r} of {folder} has no class names, and its {len(labels)} numbers are not those of "
                f"classes from 0: the largest is {most}.",
                "number the classes from 0, or cast it to a ClassLabel with the datasets library",
            )
        names = [str(label) for label in range(most + 1)]
        say(Note(f"{column!r} has no class names: classes are called 0 to {most}", doubtful=True))
        if most == largest_exact(str(kind)):
            end = f"{column!r} is {kind}, whose largest number is {most}: more classes would be wrapped"
            say(Note(end, doubtful=True))
    if len(names) < 2 or len(set(names)) < len(names):
        raise BadValue(
            f"Column {column!r} of {folder} names the classes {', '.join(names)}.", "name at least two apart"
        )
    say(Note(f"class order, as the column {column!r} states it: {shortened(names)}"))
    return tuple(names)
