"""Digits, and how splits are carved: against plain counting and torch's own interpolation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rd3.datasets import Roots, class_list_hash, dataset_info, dataset_names, open_dataset
from rd3.datasets._splits import carve
from rd3.errors import UnknownName
from rd3.seeding import derive

DIGITS_FINGERPRINT = "b5556386da981d18bcdf4e5c17369ab6"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return open_dataset("digits", Roots(None, tmp_path_factory.mktemp("home")))


def test_carve_is_balanced_interleaved_and_complete():
    labels = np.random.default_rng(3).integers(0, 7, 500)
    drawn, left = carve(labels, 7, 10, "validation")
    take = np.bincount(labels).min() // 10
    assert labels[drawn].tolist() == list(range(7)) * take
    assert sorted([*drawn, *left]) == list(range(500))
    assert np.all(np.diff(left) > 0)


def test_carve_takes_at_least_one_a_class():
    drawn, left = carve(np.array([1, 0, 1, 0]), 2, 10, "validation")
    assert len(drawn) == 2 and len(left) == 2


def splitmix64(seed, rank):
    """The published algorithm in plain whole numbers."""
    mask = (1 << 64) - 1
    z = (seed + (rank + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_carve_never_changes():
    drawn, _left = carve(np.arange(200) % 2, 2, 10, "validation")
    ranked = [
        sorted(range(100), key=lambda rank: splitmix64(derive(0, "carve", "validation", c), rank)) for c in (0, 1)
    ]
    assert drawn.tolist() == [2 * ranked[c][k] + c for k in range(10) for c in (0, 1)]
    other, _left = carve(np.arange(200) % 2, 2, 10, "test")
    assert drawn.tolist() != other.tolist()


def test_digits_counts_are_those_announced(digits):
    info = dataset_info("digits")
    train, test = np.bincount(digits.labels("train")), np.bincount(digits.labels("test"))
    assert (train.sum(), test.sum(), train.min()) == (info.train_count, info.test_count, info.train_per_class)
    assert len(set(test)) == 1
    assert info.train_count + info.test_count == 1797


def test_digits_normalisation_is_that_of_the_training_pixels(digits):
    pixels = digits.images("train", range(len(digits.labels("train")))).double() / 255
    assert pixels[:, 0].mean().item() == pytest.approx(digits.info.normalisation.mean[0], abs=5e-5)
    assert pixels[:, 0].std().item() == pytest.approx(digits.info.normalisation.std[0], abs=5e-5)


def test_digits_are_the_originals_upsampled(digits):
    """Every image is torch's bilinear interpolation of one of scikit-learn's 8x8 images, with its label."""
    loaded = load_digits()
    grey = torch.from_numpy(loaded.images)[:, None]
    exact = torch.nn.functional.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)[:, 0] * 255 / 16
    ours = torch.cat([digits.images("train", range(1457)), digits.images("test", range(340))])
    labels = np.concatenate([digits.labels("train"), digits.labels("test")])
    assert torch.equal(ours[:, 0], ours[:, 1]) and torch.equal(ours[:, 0], ours[:, 2])
    flat, theirs = ours[:, 0].flatten(1).double(), exact.flatten(1)
    nearest = torch.cdist(flat, theirs).argmin(dim=1)
    assert (flat - theirs[nearest]).abs().max() <= 0.5
    assert sorted(nearest.tolist()) == list(range(1797))
    assert np.array_equal(labels, loaded.target[nearest.numpy()])


def test_validation_and_fit_are_a_partition_of_train(digits):
    fit, validation = digits.labels("fit"), digits.labels("validation")
    assert len(fit) + len(validation) == len(digits.labels("train"))
    assert validation.tolist() == list(range(10)) * 14
    both = torch.cat([digits.images("fit", range(len(fit))), digits.images("validation", range(len(validation)))])
    everything = digits.images("train", range(1457))
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, everything.numpy()))


def test_a_range_is_a_view_and_indices_are_a_copy(digits):
    view, copy = digits.images("test", range(5, 9)), digits.images("test", [5, 6, 7, 8])
    assert torch.equal(view, copy) and view.dtype == torch.uint8
    assert view.untyped_storage().data_ptr() == digits.images("test", range(0, 1)).untyped_storage().data_ptr()
    assert torch.equal(digits.images("test", np.array([8, 5])), copy[[3, 0]])
    assert torch.equal(digits.original("test", 6), copy[1])


def test_labels_cannot_be_written(digits):
    with pytest.raises(ValueError, match="read-only"):
        digits.labels("train")[0] = 3


def test_digits_fingerprint_never_changes(digits):
    assert digits.fingerprint == DIGITS_FINGERPRINT


def test_names_are_found_with_a_hint():
    assert {"digits", "cifar10", "imagenette", "imagenette-224"} <= set(dataset_names())
    with pytest.raises(UnknownName, match="did you mean 'cifar10'"):
        dataset_info("cifar_10")


def test_published_class_lists():
    assert dataset_info("imagenet1k").class_ids[217] == "n02102040"
    assert dataset_info("imagenet1k").class_ids[273] == "n02115641"
    assert dataset_info("imagewoof").class_names[0] == "Shih-Tzu"
    assert dataset_info("tinyimagenet").class_ids == tuple(sorted(dataset_info("tinyimagenet").class_ids))
    whole = set(dataset_info("imagenet1k").class_ids)
    for name, count in {"imagenette": 10, "imagewoof": 10, "tinyimagenet": 200}.items():
        assert dataset_info(name).num_classes == count and whole >= set(dataset_info(name).class_ids)
    info = dataset_info("imagenette-224")
    assert info.classes == class_list_hash(dataset_info("imagenette").class_ids) and info.parent == "imagenette"


def test_planning_needs_no_torch():
    code = (
        "import sys; from rd3.datasets import dataset_info, dataset_names; [dataset_info(n) for n in dataset_names()]"
    )
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
