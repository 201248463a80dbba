"""The interface of datasets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import computed_field

from rd3.lazy import torch
from rd3.recipe import Normalisation
from rd3.values import Frozen

Split = Literal["train", "fit", "validation", "test"]
"""``train``: all training images, which are ``fit`` plus ``validation`` (held out); ``test``: the test images."""


@dataclass(frozen=True)
class Roots:
    """Folders chosen by the caller; this package does not read environment variables."""

    data: Path | None
    """Folder with the user's datasets (``<data>/<name>/...``); may be read-only."""
    home: Path
    """Folder that RD3 writes to: decoded data, downloads, registered datasets."""


def class_list_hash(classes: Sequence[str]) -> str:
    """sha256 of the class identifiers, in order, one per line."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


class DatasetInfo(Frozen):
    """Description of a dataset, available before any file is read."""

    name: str
    source: str
    """Origin of the data, and how it differs from the original dataset."""
    class_ids: tuple[str, ...]
    """Identifiers in label order: wnids for the ImageNet family, names elsewhere."""
    class_names: tuple[str, ...]
    """Readable class names, in label order."""
    resolution: int
    """Side of the network input in pixels."""
    test_resize: int
    """Shorter side, in pixels, to which images (training images too) are resized before the centre crop."""
    factor: int
    """Patches per side of an image, in the patch shuffle and in RDED: 1 at 32 and 64 pixels, 2 at 224."""
    normalisation: Normalisation
    train_count: int
    """Number of training images of all classes."""
    test_count: int
    train_per_class: int
    """Number of training images of the smallest class."""
    parent: str | None = None
    """Name of the complete dataset, if this is a subset: settings published for it are used, marked as nearest."""

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorators on properties
    @property
    def classes(self) -> str:
        """Hash of the class list, in order."""
        return class_list_hash(self.class_ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_ids)


class Dataset(ABC):
    """An opened dataset.

    Images are ``(B, 3, H, W) uint8``, 0-255, at ``info.resolution``: files of another size have their shorter side
    resized (antialiased) and are centre cropped.  Labels are int64 in the order of ``info.class_ids``.
    """

    info: DatasetInfo

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the data on disk: of decoded images, or, if these are not kept, of encoded ones or their names and
        sizes."""

    @abstractmethod
    def labels(self, split: Split) -> np.ndarray:
        """(N,) int64 labels of a split, in its fixed order."""

    @abstractmethod
    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) uint8 images at these positions of the split."""

    @abstractmethod
    def original(self, split: Split, index: int) -> torch.Tensor:
        """(3, h, w) uint8: one image as stored, neither resized nor cropped."""

    def originals(self, split: Split, indices: Sequence[int]) -> list[torch.Tensor]:
        """Several images as stored; their sizes may differ."""
        return [self.original(split, index) for index in indices]
