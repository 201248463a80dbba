"""Balanced, deterministic splits that are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from rd3.datasets._base import Dataset, DatasetInfo, Split
from rd3.datasets._cache import short_hash
from rd3.errors import BadValue
from rd3.inputs.label_type import require_exact
from rd3.lazy import torch
from rd3.seeding import derive

VALIDATION_DIVISOR = 10
"""The validation part has 1/10 of the smallest class's training images of every class, at least one."""
CARVE_SEED = 0
"""Fixed, so that the splits of a dataset never depend on a recipe's seeds."""


def _scores(stream: str, label: int, count: int) -> np.ndarray:
    """(count,) uint64: a hash of (seed, stream, label, rank) for each rank within a class.

    SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) rather than a
    NumPy generator, whose streams may change between versions.
    """
    state = np.uint64(derive(CARVE_SEED, "carve", stream, label))
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def carve(labels: np.ndarray, num_classes: int, divisor: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions drawn, equally many of every class, and the remaining positions.

    ``labels`` is (N,).  Of every class, 1/``divisor`` of the smallest one's images are drawn, at least one; ``stream``
    is the name of the random stream.  The drawn positions are class-interleaved, so that the first ``k * num_classes``
    hold ``k`` of every class; the remaining ones keep their order.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(num_classes + 1))
    take = max(1, int(np.diff(bounds).min()) // divisor)
    drawn = np.empty((take, num_classes), dtype=np.int64)
    for label in range(num_classes):
        members = order[bounds[label] : bounds[label + 1]]
        ranked = np.argsort(_scores(stream, label, len(members)), kind="stable")
        drawn[:, label] = members[ranked[:take]]
    left = np.ones(len(labels), dtype=bool)
    left[drawn.ravel()] = False
    return drawn.ravel(), np.flatnonzero(left)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class SplitDataset(Dataset):
    """A dataset stored in two parts, ``train`` and ``test``; ``fit`` and ``validation`` are split off from the first.

    Without ``test_labels`` it was opened for training only, and accessing the test split raises.
    """

    def __init__(self, info: DatasetInfo, fingerprint: str, train_labels: np.ndarray, test_labels: np.ndarray | None):
        for part, labels in (("train", train_labels), ("test", test_labels)):
            require_exact(labels, f"{part} labels", info.num_classes, info.name)
        self.info = info
        self._fingerprint = fingerprint
        self._labels: dict[str, np.ndarray] = {"train": _frozen(np.array(train_labels, dtype=np.int64))}
        if test_labels is not None:
            self._labels["test"] = _frozen(np.array(test_labels, dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _positions(self) -> dict[str, np.ndarray]:
        """Positions in ``train`` of the images of the two splits that are drawn from it."""
        drawn, left = carve(self._labels["train"], self.info.num_classes, VALIDATION_DIVISOR, "validation")
        return {"validation": drawn, "fit": left}

    def labels(self, split: Split) -> np.ndarray:
        if split == "test" and split not in self._labels:
            raise no_test(self.info)
        if split not in self._labels:
            self._labels[split] = _frozen(self._labels["train"][self._positions[split]])
        return self._labels[split]

    def _stored(self, split: Split, indices: Sequence[int]) -> tuple[str, Sequence[int] | np.ndarray]:
        """The stored part with these images and their positions in it; a range stays a range."""
        if split in ("train", "test"):
            self.labels(split)  # raises for a test split that was not opened
            return split, indices
        return "train", self._positions[split][np.asarray(indices, dtype=np.int64)]


def no_test(info: DatasetInfo) -> BadValue:
    """The error for accessing the test split of a dataset opened for training only."""
    return BadValue(f"Dataset {info.name} was opened without its test split.", "open the complete dataset")


class TrainingOnly(Dataset):
    """A dataset without its test split, for sources that can only be opened completely."""

    def __init__(self, whole: Dataset):
        self._whole = whole
        self.info = whole.info

    @property
    def fingerprint(self) -> str:
        return short_hash([self._whole.fingerprint, "training only"])

    def _with(self, split: Split) -> Dataset:
        if split == "test":
            raise no_test(self.info)
        return self._whole

    def labels(self, split: Split) -> np.ndarray:
        return self._with(split).labels(split)

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        return self._with(split).images(split, indices)

    def original(self, split: Split, index: int) -> torch.Tensor:
        return self._with(split).original(split, index)

    def originals(self, split: Split, indices: Sequence[int]) -> list[torch.Tensor]:
        return self._with(split).originals(split, indices)
