"""Datasets of 224 pixels: images are kept encoded and decoded batch by batch."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rd3.datasets._base import Dataset, DatasetInfo, Split
from rd3.datasets._cache import cache_file, content_hash, read_arrays, read_or_write, replacing
from rd3.datasets._decode import decode, fit_size, planes
from rd3.datasets._folder import FolderRecords
from rd3.datasets._records import Found, Records, info_with_counts
from rd3.datasets._splits import SplitDataset
from rd3.errors import DataCorrupt
from rd3.lazy import torch

if TYPE_CHECKING:
    from PIL.Image import Image

HEADER_BYTES = 4096
"""Bytes reserved for the header of an unpacked file, which is written last."""


class StreamDataset(SplitDataset):
    """Images decoded on demand, on as many threads as torch uses; decoded images are not cached."""

    def __init__(self, info: DatasetInfo, fingerprint: str, parts: Parts, labels: dict[str, np.ndarray]):
        super().__init__(info, fingerprint, labels["train"], labels.get("test"))
        self._parts = parts

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        side = self.info.resolution
        out = np.empty((len(indices), 3, side, side), dtype=np.uint8)
        fitted = self._decoded(split, indices, lambda image: fit_size(image, self.info.test_resize, side))
        for place, pixels in enumerate(fitted):
            out[place] = pixels
        return torch.from_numpy(out)

    def original(self, split: Split, index: int) -> torch.Tensor:
        return self.originals(split, [index])[0]

    def originals(self, split: Split, indices: Sequence[int]) -> list[torch.Tensor]:
        return [torch.from_numpy(pixels) for pixels in self._decoded(split, indices, lambda image: image)]

    def _decoded(self, split: Split, indices: Sequence[int], fit: Callable[[Image], Image]) -> Iterator[np.ndarray]:
        """The pixels (3, H, W) of these images after ``fit``, in order; threads decode ahead."""
        name, positions = self._stored(split, indices)
        part = self._parts[name]

        def pixels(index: int) -> np.ndarray:
            return np.ascontiguousarray(planes(fit(decode(part.encoded(index), part.where(index)))))

        threads = min(torch.get_num_threads(), len(positions))
        if threads <= 1:
            yield from map(pixels, map(int, positions))
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(pixels, map(int, positions))


class UnpackedRecords:
    """Encoded images in one memory-mapped file, each with a checksum."""

    def __init__(self, tensors: dict[str, torch.Tensor], part: str, records: Records):
        self._bytes = tensors["bytes"].numpy()
        self._starts = tensors[f"{part}_starts"].numpy()
        self._sums = tensors[f"{part}_crc32"].numpy()
        self.where = records.where

    def encoded(self, index: int) -> bytes:
        """The bytes of one image, checked."""
        data = self._bytes[self._starts[index] : self._starts[index + 1]].tobytes()
        if zlib.crc32(data) != self._sums[index]:
            raise DataCorrupt(
                f"{self.where(index)}: RD3's unpacked copy of the image was modified.",
                "delete this dataset's files from the data folder in RD3's home; they will be recreated",
            )
        return data


Parts = Mapping[str, FolderRecords | UnpackedRecords]
"""The encoded images of each part, with random access."""


def _unpack(path: Path, parts: dict[str, Records], class_ids: Sequence[str]) -> None:
    """Write the encoded images of Parquet files, which have no random access, into a safetensors file."""
    digest = hashlib.sha256("\n".join(class_ids).encode())
    arrays: dict[str, np.ndarray] = {}
    total = 0
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(b" " * HEADER_BYTES)  # for the header, which is written when the sizes are known
        for part, records in parts.items():
            starts, sums = [total], []
            for encoded in records:
                out.write(encoded)
                digest.update(hashlib.sha256(encoded).digest())
                total += len(encoded)
                starts.append(total)
                sums.append(zlib.crc32(encoded))
            arrays[f"{part}_starts"] = np.asarray(starts, dtype=np.int64)
            arrays[f"{part}_crc32"] = np.asarray(sums, dtype=np.int64)
            digest.update(records.labels.tobytes())
        padding = -total % 8
        out.write(b"\0" * padding)
        header: dict[str, Any] = {
            "__metadata__": {"fingerprint": digest.hexdigest()[:32]},
            "bytes": {"dtype": "U8", "shape": [total + padding], "data_offsets": [0, total + padding]},
        }
        at = total + padding
        for name, array in arrays.items():
            out.write(array.tobytes())
            header[name] = {"dtype": "I64", "shape": [len(array)], "data_offsets": [at, at + array.nbytes]}
            at += array.nbytes
        out.seek(0)
        text = json.dumps(header).encode()
        out.write(struct.pack("<Q", HEADER_BYTES - 8) + text.ljust(HEADER_BYTES - 8))


def open_stream(info: DatasetInfo, found: Found, home: Path, training_only: bool = False) -> Dataset:
    """Open without decoding.

    Class folders are listed each time (a few seconds for ImageNet-1K), so that no change is missed; Parquet files are
    unpacked once, under ``home``.
    """
    records = found.parts(training_only)
    labels = {part: own.labels for part, own in records.items()}
    folders = {part: own for part, own in records.items() if isinstance(own, FolderRecords)}
    parts: Parts = folders
    if len(folders) == len(records):
        fingerprint = content_hash([array for own in folders.values() for array in own.content()], info.class_ids)
    else:
        # "unpacked 1": version of the format of :func:`_unpack`
        path = cache_file(home, info.name, ["unpacked 1", info.classes, *found.stamp(training_only)])
        read, write = partial(read_arrays, path), partial(_unpack, path, records, info.class_ids)
        tensors, meta = read_or_write(path, read, write)
        fingerprint = meta["fingerprint"]
        parts = {part: UnpackedRecords(tensors, part, own) for part, own in records.items()}
    return StreamDataset(info_with_counts(info, found, labels), fingerprint, parts, labels)
