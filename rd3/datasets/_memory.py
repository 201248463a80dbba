"""Datasets of 32 and 64 pixels: decoded once and kept as uint8 in a memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rd3.datasets._base import Dataset, DatasetInfo, Split
from rd3.datasets._cache import cache_file, content_hash, read_arrays, read_or_write, write_arrays
from rd3.datasets._records import Found, Records, info_with_counts
from rd3.datasets._splits import SplitDataset
from rd3.lazy import torch


def _arrays(parts: Iterable[str]) -> list[str]:
    """Names of the arrays in a decoded file, in the order of its fingerprint."""
    return [name for part in parts for name in (part, f"{part}_labels")]


class MemoryDataset(SplitDataset):
    """Decoded images in memory, or in a memory-mapped file shared by several processes.

    ``pixels`` holds ``train`` and, unless opened for training only, ``test`` as (N, 3, H, W) uint8.

    Deviations: ``original`` returns images at ``info.resolution``, as the original sizes are not kept.
    """

    def __init__(
        self, info: DatasetInfo, fingerprint: str, pixels: dict[str, torch.Tensor], labels: dict[str, np.ndarray]
    ):
        super().__init__(info, fingerprint, labels["train"], labels.get("test"))
        self._pixels = pixels

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) uint8.  A range with step 1 of ``train`` or ``test`` gives a view; do not modify it."""
        part, positions = self._stored(split, indices)
        if isinstance(positions, range) and positions.step == 1:
            return self._pixels[part][positions.start : positions.stop]
        return self._pixels[part][torch.from_numpy(np.array(positions, dtype=np.int64))]

    def original(self, split: Split, index: int) -> torch.Tensor:
        part, positions = self._stored(split, [index])
        return self._pixels[part][int(positions[0])]


def open_in_memory(info: DatasetInfo, found: Found, home: Path, training_only: bool = False) -> Dataset:
    """Open a dataset from its decoded file, checked against its hash, or decode it now and write that file."""
    # What the pixels depend on beside the files: version of the decoder, sizes, hash of the class list.
    how = f"decoded 1 {info.resolution} {info.test_resize} {info.classes}"
    path = cache_file(home, info.name, [how, *found.stamp(training_only)])
    parts = found.parts(training_only)
    return read_or_write(path, partial(_checked, path, info, found, parts), partial(_decode, path, info, parts))


def _decode(path: Path, info: DatasetInfo, parts: dict[str, Records]) -> None:
    """Decode these parts into a file, with their fingerprint."""
    arrays = {}
    for part, records in parts.items():
        arrays[f"{part}_labels"] = records.labels
        arrays[part] = records.pixels(info)
    fingerprint = content_hash([arrays[name] for name in _arrays(parts)], info.class_ids)
    write_arrays(path, arrays, {"fingerprint": fingerprint})


def _checked(path: Path, info: DatasetInfo, found: Found, parts: Iterable[str]) -> MemoryDataset | None:
    """The dataset in a decoded file; None if the file is missing, truncated or modified."""
    cached = read_arrays(path)
    if cached is None or not set(_arrays(parts)) <= set(cached[0]):
        return None
    tensors, meta = cached
    arrays = {name: tensors[name].numpy() for name in _arrays(parts)}
    fingerprint = content_hash(list(arrays.values()), info.class_ids)
    if fingerprint != meta.get("fingerprint"):
        return None
    labels = {part: arrays[f"{part}_labels"] for part in parts}
    pixels = {part: tensors[part] for part in parts}
    return MemoryDataset(info_with_counts(info, found, labels), fingerprint, pixels, labels)
