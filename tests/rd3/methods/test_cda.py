"""CDA's curriculum in closed form, and that its crops are drawn by it."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

import rd3.augment
from rd3.augment import crop_boxes
from rd3.datasets import dataset_info
from rd3.methods import METHODS, resolve_settings
from rd3.methods._base import published, reductions
from rd3.methods._recovery import shared_view
from rd3.methods.cda import smallest_area
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

TOY = ToyDataset(side=16)


def _make(folder, name="cda", **settings):
    recipe = trial_recipe(name, TOY, 1, **settings)
    return synthesize(recipe, TOY, (toy_teacher(TOY),), folder)


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [
        ("cosine", [1.0, 0.08 + 0.92 * (1 + 0.5**0.5) / 2, 0.54, 0.08 + 0.92 * (1 - 0.5**0.5) / 2, 0.08, 0.08]),
        ("linear", [1.0, 0.77, 0.54, 0.31, 0.08, 0.08]),
        ("step", [1.0, 1.0, 1.0, 1.0, 0.08, 0.08]),
        ("none", [0.08] * 6),
    ],
)
def test_the_curriculum_in_closed_form(curriculum, expected):
    """At no, a quarter, a half and three quarters of the way, at the milestone and behind it."""
    for iterations, milestone in ((1000, 0.4), (400, 1.0)):
        end = milestone * iterations
        found = [smallest_area(t, end, curriculum, 0.08) for t in (0, 100, 200, 300, 400, 401)]
        assert found == pytest.approx(expected)
    assert smallest_area(7, 0.0, curriculum, 0.2) == 0.2
    if curriculum != "none":
        assert smallest_area(399, 400, curriculum, 0.25) >= 0.25


def test_every_smallest_area_can_be_drawn_from():
    """Rounding must not lift it above 1, where there is nothing left to draw."""
    stream = torch.Generator().manual_seed(0)
    for lowest in (number / 997 for number in range(1, 998)):
        area = smallest_area(0, 3, "cosine", lowest)
        assert area == 1
        assert crop_boxes(1, 32, 32, area, stream).tolist() == [[0, 0, 32, 32]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"curriculum": "linear", "milestone": 0.5}, [1.0, 0.54, 0.08, 0.08]),
        ({"curriculum": "cosine", "crop_scale_min": 0.2}, [0.6 + 0.4 * math.cos(math.pi * t / 4) for t in range(4)]),
        ({"curriculum": "step", "milestone": 0.25}, [1.0, 0.08, 0.08, 0.08]),
        ({"curriculum": "none"}, [0.08] * 4),
    ],
)  # fmt: skip
def test_a_set_is_made_with_crops_of_the_curriculum(settings, expected, tmp_path, monkeypatch):
    drawn, plain = [], rd3.augment.crop_boxes

    def noted(batch, height, width, min_area, stream):
        drawn.append(min_area)
        return plain(batch, height, width, min_area, stream)

    monkeypatch.setattr("rd3.methods._recovery.crop_boxes", noted)
    _make(tmp_path, iterations=4, **settings)
    assert drawn == pytest.approx(expected)


@pytest.mark.parametrize("iteration", [0, 60, 100, 140, 200])
def test_views_are_cut_out_at_least_that_large(iteration):
    """An image whose colours are its coordinates tells the box that a view was cut from."""
    settings = resolve_settings("cda", dataset_info("cifar10"), 1, {"iterations": 200, "curriculum": "linear"})
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.stack([rows, columns, rows]).expand(2, 3, 32, 32)
    area, stream = METHODS.get("cda")().min_area(settings, iteration), torch.Generator().manual_seed(iteration)
    shares = []
    for _draw in range(150):
        seen = shared_view(images, stream, min_area=area, flip=settings.flip, jitter=settings.jitter)
        high, wide = (float(seen[:, c].max() - seen[:, c].min()) + 1 for c in (0, 1))
        shares.append(high * wide / 32**2)
    lowest = 1 - 0.92 * min(1, iteration / 200)
    # sides are rounded to whole pixels, half a pixel each at most
    assert min(shares) >= lowest - 1 / 32
    assert min(shares) <= lowest + 0.1
    assert max(shares) <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 40), (40, 20)])
def test_areas_that_fit_no_box_give_torchvisions_central_one(height, width):
    image = torch.zeros(3, height, width)
    expected = RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    found = crop_boxes(50, height, width, 1.0, torch.Generator().manual_seed(0))
    assert {tuple(box) for box in found.tolist()} == {tuple(expected)}


def test_near_1_the_whole_image_comes_as_often_as_in_torchvision():
    image, draws = torch.zeros(3, 224, 224), 1500
    for area in (0.9, 0.97):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs = [RandomResizedCrop.get_params(image, [area, 1.0], [3 / 4, 4 / 3]) for _draw in range(draws)]
        ours = crop_boxes(draws, 224, 224, area, torch.Generator().manual_seed(1)).tolist()
        shares = [sum(tuple(box) == (0, 0, 224, 224) for box in boxes) / draws for boxes in (theirs, ours)]
        sigma = math.sqrt(2 * shares[0] * (1 - shares[0]) / draws)
        assert 0.05 < shares[0] < 0.95 and abs(shares[1] - shares[0]) < 4 * sigma


def test_without_a_curriculum_it_is_sre2l(tmp_path):
    common = {"iterations": 5, "jitter": 2, "batch_classes": 2, "crop_scale_min": 0.08, "flip": True}
    none = _make(tmp_path / "none", curriculum="none", **common)
    sre2l = _make(tmp_path / "sre2l", name="sre2l", **common)
    cosine = _make(tmp_path / "cosine", **common)
    over = _make(tmp_path / "over", milestone=0.0, **common)
    assert none.content == sre2l.content == over.content != cosine.content


def test_a_pair_of_curricula_shares_its_random_draws(tmp_path, monkeypatch):
    """With and without differ in nothing but the smallest area: the streams are in the same state afterwards."""
    states, plain = [], generator

    def kept(*names):
        states.append(plain(*names))
        return states[-1]

    monkeypatch.setattr("rd3.methods._base.generator", kept)
    for curriculum in ("none", "cosine"):
        _make(tmp_path / curriculum, curriculum=curriculum)
    without, with_one = states
    assert torch.equal(without.get_state(), with_one.get_state())


def test_published_settings_of_cda():
    names = ("iterations", "lr", "bn_weight", "batch_classes", "jitter", "two_sided")

    def fields(dataset):
        settings = resolve_settings("cda", dataset_info(dataset), 1)
        assert (settings.curriculum, settings.milestone) == ("cosine", 1.0)
        assert (settings.crop_scale_min, settings.flip, settings.init) == (0.08, True, "noise")
        return tuple(getattr(settings, name) for name in names)

    assert fields("imagenet1k") == (4000, 0.25, 0.01, 100, 32, False)
    assert fields("imagenette") == fields("imagewoof") == (4000, 0.25, 0.01, 10, 32, False)
    assert fields("tinyimagenet") == (4000, 0.4, 0.05, 100, 4, False)
    assert fields("cifar100") == (1000, 0.25, 0.01, 100, 4, False)
    assert fields("cifar10") == (1000, 0.25, 0.01, 10, 4, False)
    nearest = {
        name: published("cda", dataset_info(name)).nearest for name in ("imagenet1k", "tinyimagenet", "cifar100")
    }
    assert nearest == {"imagenet1k": False, "tinyimagenet": False, "cifar100": True}
    digits = dataset_info("digits")
    assert reductions("cda", digits, resolve_settings("cda", digits, 1)) == {"iterations": (100, 1000)}
