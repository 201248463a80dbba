"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rd3.datasets._base import DatasetInfo
from rd3.datasets._classes import check_order, name_and_classes
from rd3.datasets._records import Found, Records, file_stamp
from rd3.datasets._source import FileSource, register_dataset
from rd3.errors import DataCorrupt
from rd3.recipe import Normalisation


class BatchRecords(Records):
    """One split of the official Python archive.

    The files are pickles; torchvision reads them only after checking their MD5 against the official archive.
    """

    def __init__(self, folder: Path, reader: str, train: bool, info: DatasetInfo):
        self.folder, self.reader, self.train, self.info = folder, reader, train, info

    def __len__(self) -> int:
        return 50_000 if self.train else 10_000

    @cached_property
    def _read(self) -> Any:
        import torchvision

        official = getattr(torchvision.datasets, self.reader)
        reader = type(self.reader, (official,), {"base_folder": self.folder.name})
        try:
            read = reader(self.folder.parent, train=self.train, download=False)
        except RuntimeError as error:
            raise DataCorrupt(
                f"{self.folder} is not the official archive of {self.info.name}: a file is missing or its MD5 differs.",
                f"remove that folder, then rd3 data fetch {self.info.name}",
            ) from error
        check_order(read.classes, self.info, str(self.folder))
        return read

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self._read.targets, dtype=np.int64)

    def pixels(self, info: DatasetInfo) -> np.ndarray:
        return np.ascontiguousarray(self._read.data.transpose(0, 3, 1, 2))

    def __iter__(self) -> Iterator[bytes]:
        return (image.tobytes() for image in self._read.data)

    def where(self, index: int) -> str:
        return f"{self.folder}, {'training' if self.train else 'test'} image {index}"

    def stamp(self) -> list[str]:
        return [file_stamp(path) for path in sorted(self.folder.iterdir()) if path.is_file()]


class _Cifar(FileSource):
    reader: ClassVar[str]
    names: ClassVar[str]
    """The archive's file of class names."""
    fetches = True

    def look(self, folder: Path) -> Found | None:
        archive = self.folders[0]
        for place in (folder / archive, folder):
            # `rd3 data pull` unpacks the archive's files into a folder that is named after the dataset.
            if place.is_dir() and (place.name == archive or (place / self.names).is_file()):
                train, test = (BatchRecords(place, self.reader, train, self.info) for train in (True, False))
                return Found(place, "official archive", train, test)
        return super().look(folder)

    def fetch(self, folder: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, self.reader)(folder, download=True)


@register_dataset("cifar10")
class Cifar10(_Cifar):
    """60,000 colour images of 32x32, 10 classes."""

    reader = "CIFAR10"
    names = "batches.meta"
    folders = ("cifar-10-batches-py",)
    info = DatasetInfo(
        **name_and_classes("cifar10"),
        source="CIFAR-10 (Krizhevsky, 2009), complete",
        resolution=32,
        test_resize=32,
        factor=1,  # patches per side
        normalisation=Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        train_count=50_000,
        test_count=10_000,
        train_per_class=5_000,
    )


@register_dataset("cifar100")
class Cifar100(_Cifar):
    """60,000 colour images of 32x32, 100 fine classes."""

    reader = "CIFAR100"
    names = "meta"
    folders = ("cifar-100-python",)
    info = DatasetInfo(
        **name_and_classes("cifar100"),
        source="CIFAR-100 (Krizhevsky, 2009), fine labels, complete",
        resolution=32,
        test_resize=32,
        factor=1,  # patches per side
        normalisation=Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
        train_count=50_000,
        test_count=10_000,
        train_per_class=500,
    )
