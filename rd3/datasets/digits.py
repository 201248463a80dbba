"""``digits``: the 1,797 handwritten digits shipped with scikit-learn, which need no download."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from rd3 import __version__
from rd3.datasets._base import Dataset, DatasetInfo, Roots
from rd3.datasets._cache import content_hash
from rd3.datasets._classes import name_and_classes
from rd3.datasets._memory import MemoryDataset
from rd3.datasets._source import Copy, Source, register_dataset
from rd3.datasets._splits import carve
from rd3.lazy import torch
from rd3.recipe import Normalisation

TEST_DIVISOR = 5
"""The test split has 1/5 of the smallest class (174) of every class: 34 images each."""


def _upsampled(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32) uint8 of (N, 8, 8) values 0-16: bilinear with half-pixel centres, edges repeated."""
    # In integer arithmetic, so that the pixels, and therefore the fingerprint, are the same on every machine.
    weights = np.zeros((32, 8), dtype=np.int64)
    for row in range(32):
        eighths = 2 * row - 3  # the centre of an output row, in eighths of an input row
        low, part = eighths // 8, eighths % 8
        weights[row, np.clip(low, 0, 7)] += 8 - part
        weights[row, np.clip(low + 1, 0, 7)] += part
    wide = weights @ images.astype(np.int64) @ weights.T  # 64 x the interpolated value
    return ((wide * 255 + 512) // 1024).astype(np.uint8)


@register_dataset("digits")
class Digits(Source):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak, UCI, 1998): the test part, 1,797 8x8 images.

    Grey images as RGB, bilinearly upsampled to 32x32.  The split is RD3's own: 34 test images of every class.
    """

    info = DatasetInfo(
        **name_and_classes("digits"),
        source="scikit-learn's load_digits (UCI optical digits, 8x8 grey), upsampled bilinearly to 32x32; RD3's split",
        resolution=32,
        test_resize=32,
        factor=1,  # patches per side
        # measured on the 1,457 training images at 32x32
        normalisation=Normalisation(mean=(0.3052, 0.3052, 0.3052), std=(0.3236, 0.3236, 0.3236)),
        train_count=1457,
        test_count=340,
        train_per_class=140,
    )

    def survey(self, roots: Roots) -> Copy:
        return Copy(folder=None, layout="scikit-learn", info=self.info)

    def stamp(self, roots: Roots, training_only: bool = False) -> list[str]:
        # Equal stamps mean equal data: the digits are scikit-learn's, their upsampling and split RD3's.
        return [f"scikit-learn {version('scikit-learn')}, RD3 {__version__}"]

    def open(self, roots: Roots) -> Dataset:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        grey = _upsampled(np.rint(loaded.images))
        labels = loaded.target.astype(np.int64)
        test, train = carve(labels, 10, TEST_DIVISOR, "digits-test")
        pixels = np.repeat(grey[:, None], 3, axis=1)
        arrays = [pixels[train], labels[train], pixels[test], labels[test]]
        tensors = {"train": torch.from_numpy(arrays[0]), "test": torch.from_numpy(arrays[2])}
        fingerprint = content_hash(arrays, self.info.class_ids)
        return MemoryDataset(self.info, fingerprint, tensors, {"train": arrays[1], "test": arrays[3]})
