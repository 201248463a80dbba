"""G-VBSM: data densification, its turns and batches, and sets that meet the statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rd3.methods.gvbsm
from rd3.datasets import dataset_info
from rd3.errors import Diverged
from rd3.layer_statistics import collect, load
from rd3.methods import METHODS, Block, Context, Cost, resolve_settings
from rd3.methods._matching import MatchingLoss, targets_of_all
from rd3.methods._pool import Pool, view
from rd3.methods.gvbsm import class_groups, densification
from rd3.recipe import StatisticsRecipe
from rd3.seeding import generator
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe, trial_recipes, trial_set

TOY = ToyDataset(side=16)
POOL = ("one", "two", "three")
SMALL = {"pool": POOL, "patch": 4, "crop_scale_min": None, "statistics_crop": "pad", "drop_rate": 0.4, "ema": 0.8}
"""What 32 pixels have, for the toy's 16."""


def _teachers(count=3):
    return [toy_teacher(TOY, number) for number in range(count)]


def _make(tmp_path, folder, ipc, *, teachers=None, **settings):
    """A set of a pool; its statistics are collected once in ``tmp_path``."""
    recipes = trial_recipes("gvbsm", TOY, ipc, **{**SMALL, **settings})
    trial_set(recipes, TOY, teachers or _teachers(), tmp_path, tmp_path / folder)
    return SyntheticSet.open(tmp_path / folder), recipes


def test_published_settings():
    def fields(dataset, *names):
        settings = resolve_settings("gvbsm", dataset_info(dataset), 50)
        return tuple(getattr(settings, name) for name in names)

    names = ("iterations", "lr", "batch_size", "ema", "drop_rate", "patch", "parts", "crop_scale_min", "jitter")
    assert fields("imagenet1k", *names) == (4000, 0.1, 80, 0.4, 0.0, 16, 1, 0.08, 32)
    assert fields("tinyimagenet", *names) == (4000, 0.05, 100, 0.8, 0.4, 4, 10, None, 32)
    assert fields("cifar100", *names) == fields("cifar10", *names) == (4000, 0.05, 100, 0.8, 0.4, 4, 1, None, 32)
    assert fields("imagenette", *names) == (4000, 0.1, 100, 0.4, 0.0, 16, 1, 0.08, 32)
    weights = ("matching_weight", "density_weight", "first_multiplier", "beta1", "beta2", "flip")
    assert fields("cifar10", *weights) == fields("imagenet1k", *weights) == (0.01, 1.0, 10.0, 0.5, 0.9, True)


def test_needs_are_a_pool_and_its_statistics():
    method, info = METHODS.get("gvbsm")(), dataset_info("cifar10")
    needs = method.needs(info, resolve_settings("gvbsm", info, 10), "resnet18")
    assert [role.removeprefix("gvbsm-") for role in needs.teachers] == [
        "resnet18", "convnet_in", "mobilenet_v2", "wrn_16_2", "shufflenet_v2_x0_5",
    ]  # fmt: skip
    collection = needs.collection
    assert (collection.patch, collection.crop, collection.flip, collection.batch_size) == (4, "pad", True, 64)
    assert needs.init == "noise"
    alone = method.needs(info, resolve_settings("gvbsm", info, 10, {"pool": ()}), "resnet18")
    assert alone.teachers == ("resnet18",)
    imagenet = dataset_info("imagenet1k")
    large = method.needs(imagenet, resolve_settings("gvbsm", imagenet, 10), "resnet18").collection
    assert (large.patch, large.crop, large.batch_size) == (16, "resized", 256)


def test_pool_and_start_are_no_settings_of_the_recipe():
    one, other = (trial_recipe("gvbsm", TOY, 1, pool=pool) for pool in (POOL, POOL[::-1]))
    assert not {"pool", "init"} & set(one.settings)
    assert one.settings == other.settings and one.teachers == other.teachers[::-1] and one.key != other.key


def test_batches_hold_whole_classes():
    method = METHODS.get("gvbsm")()
    recipe = trial_recipe("gvbsm", TOY, 4, batch_size=8)
    members = [(label, k) for label in range(3) for k in range(4)]
    blocks = method.blocks(recipe, TOY.info)
    assert [list(block.members) for block in blocks] == [members[:8], members[8:]]
    assert trial_recipe("gvbsm", TOY, 1, batch_size=100).settings["batch_size"] == 3


def test_tinys_ten_parts():
    """Numbers of images first, in ten shares, then classes: 20 of them with 5 images each in a batch at IPC 50."""
    info = dataset_info("tinyimagenet")
    settings = resolve_settings("gvbsm", info, 50).model_dump(mode="json")
    recipe = trial_recipe("gvbsm", TOY, 1).model_copy(update={"ipc": 50, "settings": settings})
    blocks = METHODS.get("gvbsm")().blocks(recipe, info)
    assert len(blocks) == 100
    for index, block in enumerate(blocks):
        part, chunk = divmod(index, 10)
        labels, numbers = range(20 * chunk, 20 * chunk + 20), range(5 * part, 5 * part + 5)
        assert list(block.members) == [(label, k) for label in labels for k in numbers]


def _plain_density(images, labels):
    """Class by class, with eigenvalues of the general solver."""
    vectors = F.interpolate(images, (32, 32), mode="area").flatten(1).double().numpy()
    total = 0.0
    for label in set(labels):
        of_class = vectors[[number for number, found in enumerate(labels) if found == label]]
        spectrum = np.linalg.eigvals(of_class @ of_class.T).real
        spectrum = spectrum - spectrum.max()
        p, q = (np.exp(values) / np.exp(values).sum() for values in (spectrum / 4, spectrum))
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)
    return total


LABELS = [0, 0, 1, 2, 2, 2, 3, 3]


def test_groups_are_classes_of_at_least_two_by_their_size():
    groups = class_groups(torch.tensor([5, 0, 5, 7, 0, 2, 2, 2]))
    assert sorted(group.tolist() for group in groups) == [[[1, 4], [0, 2]], [[5, 6, 7]]]
    assert class_groups(torch.arange(4)) == []


@pytest.mark.parametrize("side", [32, 64])
def test_densification_equals_a_plain_loop(side):
    images = 0.05 * torch.randn((8, 3, side, side), generator=generator(0, "images"))
    images *= torch.linspace(0.8, 1.4, 8).view(8, 1, 1, 1) * side / 32
    groups = class_groups(torch.tensor(LABELS))
    expected = _plain_density(images, LABELS)
    assert expected > 0.1
    assert float(densification(images, groups)) == pytest.approx(expected, rel=1e-4)
    assert float(densification(images[:4], [])) == 0


def test_densification_gradient_and_equal_eigenvalues():
    images = 0.05 * torch.randn((4, 3, 32, 32), generator=generator(0, "images"), dtype=torch.float64)
    labels = [0, 0, 1, 1]
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(densification(leaf, class_groups(torch.tensor(labels))), leaf)

    def slope_side(batch):
        """KL with the flatter side held: only the sharper one has a gradient."""
        total = 0.0
        for first in (0, 2):
            vectors = batch[first : first + 2].flatten(1).numpy()
            held = images[first : first + 2].flatten(1).numpy()
            spectrum, fixed = (np.linalg.eigvalsh(each @ each.T) for each in (vectors, held))
            weights = np.exp(fixed / 4) / np.exp(fixed / 4).sum()
            total -= (weights * (spectrum - np.log(np.exp(spectrum).sum()))).sum()
        return total

    for place in [(0, 0, 0, 0), (1, 2, 31, 5), (3, 1, 7, 7)]:
        step = torch.zeros_like(images)
        step[place] = 1e-5
        slope = (slope_side(images + step) - slope_side(images - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    # Orthogonal images of one length: all eigenvalues coincide, the KL is 0 and so is its gradient.
    equal = torch.zeros(3, 3, 32, 32)
    equal[0, 0, 0, 0] = equal[1, 1, 0, 0] = equal[2, 2, 0, 0] = 1
    leaf = equal.requires_grad_(True)
    value = densification(leaf, class_groups(torch.zeros(3, dtype=torch.int64)))
    (gradient,) = torch.autograd.grad(value, leaf)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6) and gradient.abs().max() < 1e-5


@pytest.mark.parametrize("count", [2, 3])
def test_densification_of_pixels_that_are_not_finite_is_nan(count):
    """The solver itself raises for three images; the loss has to reach the check that names its iteration."""
    images = torch.randn((count, 3, 16, 16), generator=generator(0, "images"))
    images[0, 0, 0, 0] = math.nan
    assert math.isnan(float(densification(images, class_groups(torch.zeros(count, dtype=torch.int64)))))


def test_densification_is_part_of_the_loss(tmp_path, monkeypatch):
    """With the brightness of the views in its place, its weight brightens what is made."""
    monkeypatch.setattr(rd3.methods.gvbsm, "densification", lambda images, groups: -images.sum() * len(groups))
    bright, plain = (
        _make(tmp_path, str(weight), 2, density_weight=weight, lr=0.5)[0].images.float().mean()
        for weight in (10.0, 0.0)
    )
    assert bright > plain + 20


def test_views_pad_at_small_sizes_and_resize_at_large_ones():
    images = torch.rand((2, 3, 16, 16), generator=generator(0, "images")) + 1
    small = resolve_settings("gvbsm", TOY.info, 1, SMALL)
    stream = generator(0, "views")
    zeros = [int((view(images, small, stream, jitter=32)[0] == 0).sum()) for _draw in range(60)]
    # A window off by (a, b) of the two pixels around shows 16^2 - (16 - a)(16 - b) zeros in each channel.
    allowed = {3 * (256 - (16 - a) * (16 - b)) for a in range(3) for b in range(3)}
    assert set(zeros) <= allowed and len(set(zeros)) == len(allowed)
    large = small.model_copy(update={"crop_scale_min": 0.5})
    assert all((view(images, large, stream) > 0.9).all() for _draw in range(20))


def test_teachers_take_turns_through_all_batches(tmp_path):
    """A counter over all iterations of all batches, which a batch's index alone can tell."""
    seen = []
    teachers = _teachers()
    for number, teacher in enumerate(teachers):
        teacher.register_forward_pre_hook(lambda _module, inputs, number=number: seen.append((number, len(inputs[0]))))
    _make(tmp_path, "made", 2, teachers=teachers, iterations=4, batch_size=4)
    # Statistics first, one batch of all 24 images each; then blocks of 4 and of 2 images, four iterations each.
    assert seen[:3] == [(0, 24), (1, 24), (2, 24)]
    assert seen[3:] == [(0, 4), (1, 4), (2, 4), (0, 4), (1, 2), (2, 2), (0, 2), (1, 2)]


def _mean_distance(images, teachers, statistics):
    total = 0.0
    for teacher, found in zip(teachers, statistics, strict=True):
        targets = [(1.0, targets_of_all(teacher.network, found))]
        with torch.no_grad(), MatchingLoss(teacher.network, targets, patch=4, first_multiplier=10, ema=0.0) as loss:
            teacher(images)
            total += float(loss.value()) / len(teachers)
    return total


def _met_by_real_images(teacher):
    """The running statistics of a teacher are set to those of the training images."""
    real = TOY.images("train", range(24)).float() / 255
    for layer in teacher.network:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    teacher.network.train()
    teacher(real)
    return teacher.eval()


def test_recovering_lowers_both_losses(tmp_path):
    teachers = [_met_by_real_images(teacher) for teacher in _teachers()]
    settings = {"iterations": 60, "matching_weight": 0.1, "lr": 0.1, "statistics_crop": "none", "flip": False}
    made, recipes = _make(tmp_path, "made", 4, teachers=teachers, **settings)
    statistics = [
        load(tmp_path / "parents" / recipe.key, recipe) for recipe in recipes if isinstance(recipe, StatisticsRecipe)
    ]
    assert made.manifest.phases.keys() == {"recover"}
    noise = torch.randn(made.images.shape, generator=generator(0, "noise")) * teachers[0].std + teachers[0].mean
    noise, images = noise.clamp(0, 1), made.images / 255
    real, of_made, of_noise = (
        _mean_distance(pixels, teachers, statistics)
        for pixels in (TOY.images("train", range(24)).float() / 255, images, noise)
    )
    assert real < 0.01 * of_noise and of_made < 0.7 * of_noise
    with torch.no_grad():
        entropies = [
            sum(float(F.cross_entropy(teacher(pixels), made.labels)) for teacher in teachers)
            for pixels in (images, noise)
        ]
    assert entropies[0] < 0.8 * entropies[1]


def test_densification_drives_the_images_of_a_class_apart():
    images = (0.02 * torch.randn((1, 3, 16, 16), generator=generator(0, "one"))).repeat(2, 1, 1, 1)
    images += 1e-3 * torch.randn(images.shape, generator=generator(0, "difference"))
    leaf, groups = images.clone().requires_grad_(True), class_groups(torch.tensor([0, 0]))
    for _step in range(20):
        (gradient,) = torch.autograd.grad(densification(leaf, groups), leaf)
        leaf = (leaf - 0.01 * gradient).detach().requires_grad_(True)
    assert (leaf[0] - leaf[1]).norm() > 1.3 * (images[0] - images[1]).norm()


def test_pixels_are_stored_within_range_under_a_rate_that_overshoots(tmp_path):
    made, _recipes = _make(tmp_path, "made", 1, lr=50.0)
    extremes = ((made.images == 0) | (made.images == 255)).float().mean()
    assert extremes > 0.2
    middle = made.images.float().mean()
    assert 20 < middle < 235


def test_images_that_become_nan_diverge_with_their_iteration(tmp_path):
    """From the third iteration on a teacher's logits are NaN, and so is every image before the fifty-first."""
    teachers = _teachers()
    passes = []

    def breaks(_module, inputs, logits):
        if inputs[0].requires_grad:
            passes.append(1)
        return logits * float("nan") if len(passes) > 2 else logits

    for teacher in teachers:
        teacher.register_forward_hook(breaks)
    message = r"G-VBSM, block 0: the loss was nan at iteration 51 of 60 \(last finite loss .* at iteration 1\)"
    with pytest.raises(Diverged, match=message):
        _make(tmp_path, "made", 2, teachers=teachers, iterations=60)


def test_teachers_of_other_constants_see_the_same_pixels(tmp_path):
    """The first one's constants are only those of the space in which the images live."""
    teachers = _teachers(2)
    teachers[1].mean.fill_(0.1)
    teachers[1].std.fill_(2.0)
    recipes = trial_recipes("gvbsm", TOY, 1, **(SMALL | {"pool": POOL[:2]}))
    wanted, statistics = [recipe for recipe in recipes if isinstance(recipe, StatisticsRecipe)], []
    for recipe, teacher in zip(wanted, teachers, strict=True):
        collect(recipe, teacher, TOY, tmp_path / recipe.key)
        statistics.append(load(tmp_path / recipe.key, recipe))
    settings = METHODS.get("gvbsm").Settings.model_validate(recipes[-1].settings)
    context = Context(recipes[-1], settings, TOY.info, TOY, teachers, torch.device("cpu"), statistics)
    pool = Pool(Block(0, ((0, 0), (1, 0))), context)
    pixels = TOY.images("train", range(2)).float() / 255
    for iteration, teacher in enumerate(teachers):
        logits, matching = pool.forward(teachers[0].normalise(pixels), iteration)
        torch.testing.assert_close(logits, teacher(pixels))
        assert float(matching) > 0


def test_work_is_the_mean_of_the_pools():
    recipe = trial_recipe("gvbsm", TOY, 2, pool=POOL, iterations=7)
    heavy = dict(zip(recipe.teachers, map(Cost, (10.0, 20.0, 60.0)), strict=True))
    assert METHODS.get("gvbsm")().cost(recipe, TOY.info, heavy.__getitem__).flops == 2 * 7 * 6 * 30
