"""Random: nested, of the right class, and what is on disk."""

from __future__ import annotations

import pytest
import torch

from rd3.errors import Unsupported
from rd3.methods import METHODS, Context
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, trial_recipe

TOY = ToyDataset(side=16, classes=4, per_class=9)


def _make(folder, ipc, set_seed=0):
    synthesize(trial_recipe("random", TOY, ipc, set_seed=set_seed), TOY, (), folder)
    return SyntheticSet.open(folder)


def test_smaller_sets_are_prefixes_of_larger_ones(tmp_path):
    large = _make(tmp_path / "9", 9)
    for ipc in (1, 2, 5):
        small = _make(tmp_path / str(ipc), ipc)
        assert torch.equal(small.images, large.prefix(ipc)[0])


def test_a_whole_class_is_a_permutation_of_its_real_images(tmp_path):
    made = _make(tmp_path / "9", 9)
    labels = torch.from_numpy(TOY.labels("train"))
    for label in range(4):
        real = {image.numpy().tobytes() for image in TOY.images("train", (labels == label).nonzero()[:, 0].tolist())}
        drawn = [image.numpy().tobytes() for image in made.images[made.labels == label]]
        assert len(set(drawn)) == 9 and set(drawn) == real


def test_all_images_are_drawn_equally_often(tmp_path):
    """Over 300 seeds each of 9 images comes first 33 times on average; chi-squared (8 d.f.) below its 99.9 % point."""
    counts = torch.zeros(9)
    for seed in range(300):
        recipe = trial_recipe("random", TOY, 1, set_seed=seed)
        ctx = Context(recipe, None, TOY.info, TOY, (), torch.device("cpu"))
        pick = METHODS.get("random")()._pick(2, 0, ctx)
        counts[(pick - 2) // 4] += 1
    assert float(((counts - 300 / 9) ** 2 / (300 / 9)).sum()) < 26.1


def test_more_than_a_class_has(tmp_path):
    support = METHODS.get("random")().supports(TOY.info, 10)
    assert not support.ok and support.reason == "toy has 9 training images a class, IPC is 10"
    with pytest.raises(Unsupported, match="toy has 9 training images a class, IPC is 10"):
        _make(tmp_path / "10", 10)


def test_a_split_that_has_too_few_images(tmp_path, monkeypatch):
    monkeypatch.setattr(TOY, "_labels", TOY._labels[:-1])
    with pytest.raises(Unsupported, match="Class toy3 has 8 images in split train, IPC is 9"):
        _make(tmp_path / "9", 9)
