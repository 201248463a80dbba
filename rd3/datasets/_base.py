"""What every dataset answers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from rd3.recipe import Normalisation

if TYPE_CHECKING:
    import numpy as np
    import torch

Split = Literal["train", "fit", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "fit", "validation", "test")
"""``train``: all to learn from; ``validation``: a part carved out of it, ``fit``: the rest; ``test`` is apart."""


@dataclass(frozen=True)
class Roots:
    """Folders that the caller chooses; nothing below reads the environment."""

    data: Path | None
    """Where users keep datasets (``<data>/<name>/...``); may be read-only."""
    home: Path
    """Where RD3 may write: decoded data, downloads, registrations."""


def class_list_hash(classes: Sequence[str]) -> str:
    """sha256 of the class identifiers, in order, one a line."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


class DatasetInfo(BaseModel):
    """What is known of a dataset before any file is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    """Whose data this is, and what it is not."""
    class_ids: tuple[str, ...]
    """Identifiers in label order: wnids for the ImageNet family, names elsewhere."""
    class_names: tuple[str, ...]
    """For people."""
    resolution: int
    """Side of the images that networks see, pixels."""
    test_resize: int
    """Shorter side before the centre crop of a test image, pixels."""
    factor: int
    """Patch-shuffle factor of the protocol and of RDED: 1 at 32 and 64 pixels, 2 at 224."""
    normalisation: Normalisation
    train_count: int
    """Training images, all classes."""
    test_count: int
    train_per_class: int
    """Training images of the smallest class."""
    parent: str | None = None
    """The whole that this is a subset of, if it is one: its presets apply, marked nearest."""

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorator on top of a property
    @property
    def classes(self) -> str:
        """Hash of the class list."""
        return class_list_hash(self.class_ids)

    @property
    def num_classes(self) -> int:
        return len(self.class_ids)


class Dataset(ABC):
    """An opened dataset.

    Images come as ``(B, 3, H, W) uint8``, 0-255, at ``info.resolution``: shorter side resized (antialiased) and centre
    cropped where the file has another size.  Labels are int64 in the order of ``info.class_ids``.
    """

    info: DatasetInfo

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what is on disk: decoded content for small sets, encoded bytes for streamed ones."""

    @abstractmethod
    def labels(self, split: Split) -> np.ndarray:
        """(N,) int64, the labels of a split in its fixed order."""

    @abstractmethod
    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) uint8: the images at these positions of the split."""

    @abstractmethod
    def original(self, split: Split, index: int) -> torch.Tensor:
        """(3, h, w) uint8: one image as it is stored, neither resized nor cropped."""

    def originals(self, split: Split, indices: Sequence[int]) -> list[torch.Tensor]:
        """Several of these; they may differ in size."""
        return [self.original(split, index) for index in indices]
