"""Datasets: their names, their class lists and how to open them.

``dataset_info(name)`` needs no data on disk; ``open_dataset(name, roots)`` does.  A subset has its own name and
is never mistaken for the complete dataset.
"""

from rd3.datasets._base import Dataset, DatasetInfo, Roots, Split, class_list_hash
from rd3.datasets._registry import (
    dataset_fingerprint,
    dataset_info,
    dataset_names,
    dataset_source,
    fingerprint_in,
    open_dataset,
)
from rd3.datasets._source import SOURCES, Copy, Counts, FileSource, Source, register_dataset
from rd3.datasets._upkeep import Finding, doctor, fetch
from rd3.datasets._user import add_folder, register, registration, shorter_sides

__all__ = [
    "SOURCES",
    "Copy",
    "Counts",
    "Dataset",
    "DatasetInfo",
    "FileSource",
    "Finding",
    "Roots",
    "Source",
    "Split",
    "add_folder",
    "class_list_hash",
    "dataset_fingerprint",
    "dataset_info",
    "dataset_names",
    "dataset_source",
    "doctor",
    "fetch",
    "fingerprint_in",
    "open_dataset",
    "register",
    "register_dataset",
    "registration",
    "shorter_sides",
]
