"""One part of a dataset on disk, in any layout."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rd3.datasets._decode import decode, fit_size, planes
from rd3.errors import DataCorrupt

if TYPE_CHECKING:
    from rd3.datasets._base import DatasetInfo


class Records(ABC):
    """Encoded images and their labels, in a fixed order."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, without reading them."""

    @property
    @abstractmethod
    def labels(self) -> np.ndarray:
        """(N,) int64 labels."""

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]:
        """The encoded images, in order."""

    @abstractmethod
    def where(self, index: int) -> str:
        """File and row of one image, for error messages."""

    @abstractmethod
    def stamp(self) -> list[str]:
        """Names, sizes and times of the files, to detect changes."""

    def check(self) -> None:
        """Raise for what is wrong with the files, as far as it shows without decoding images: here, with the labels."""
        assert len(self.labels) == len(self)

    def some(self, indexes: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Some of the encoded images with their index, in any order."""
        wanted = set(indexes.tolist())
        until_last = itertools.islice(self, max(wanted, default=-1) + 1)
        return ((index, encoded) for index, encoded in enumerate(until_last) if index in wanted)

    def copies_in(self, other: Records, most: int) -> tuple[int, int]:
        """(images also in ``other``, images compared), byte for byte, of the first ``most``; reads all of ``other``."""
        ours = [sha256(encoded).digest() for encoded in itertools.islice(self, most)]
        theirs = {sha256(encoded).digest() for encoded in other}
        return sum(digest in theirs for digest in ours), len(ours)

    def pixels(self, info: DatasetInfo) -> np.ndarray:
        """(N, 3, H, W) uint8: all images decoded at ``info.resolution``."""
        side = info.resolution
        out = np.empty((len(self), 3, side, side), dtype=np.uint8)
        for index, encoded in enumerate(self):
            out[index] = planes(fit_size(decode(encoded, self.where(index)), info.test_resize, side))
        return out


@dataclass(frozen=True)
class Found:
    """A dataset found on disk: its folder, its layout and its two parts."""

    folder: Path
    layout: str
    """For people to read, such as ``parquet``, ``folders`` or ``official archive``."""
    train: Records
    test: Records
    source: str = ""
    """Description of the data in the folder, if it has one."""

    def parts(self, training_only: bool = False) -> dict[str, Records]:
        return {"train": self.train} if training_only else {"train": self.train, "test": self.test}

    def counts(self, training_only: bool = False) -> tuple[int, ...]:
        """Number of images of each part."""
        return tuple(len(records) for records in self.parts(training_only).values())

    def stamp(self, training_only: bool = False) -> list[str]:
        """Names, sizes and times of the files of these parts."""
        if training_only:
            return ["training only", *self.train.stamp()]
        return [*self.train.stamp(), "test", *self.test.stamp()]


def counts_text(counts: Sequence[int]) -> str:
    """Readable form, e.g. ``200 training and 150 test``."""
    return " and ".join(f"{count} {part}" for count, part in zip(counts, ("training", "test"), strict=False))


def file_stamp(path: Path) -> str:
    """Name, size and time of one file."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def info_with_counts(info: DatasetInfo, found: Found, labels: dict[str, np.ndarray]) -> DatasetInfo:
    """The info with the counts of ``labels`` and the description of ``found``.

    Raises :class:`DataCorrupt` for a class of fewer than two training images.
    """
    per_class = np.bincount(labels["train"], minlength=info.num_classes)
    if per_class.min() < 2:
        label = int(per_class.argmin())
        raise DataCorrupt(
            f"{found.folder}: class {info.class_ids[label]} has {per_class[label]} training images, "
            "expected 2 or more.",
            f"complete {info.name}",
        )
    return info.model_copy(
        update={
            "source": found.source or info.source,
            "train_count": len(labels["train"]),
            "test_count": len(labels["test"]) if "test" in labels else info.test_count,
            "train_per_class": int(per_class.min()),
        }
    )
