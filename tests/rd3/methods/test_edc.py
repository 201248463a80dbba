"""EDC: its start, its targets of classes, the flatness term, and sets that are refined."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rd3.datasets import dataset_info
from rd3.errors import Diverged
from rd3.layer_statistics import collect, load
from rd3.methods import METHODS, Block, Context, Cost, resolve_settings
from rd3.methods._base import published
from rd3.methods._matching import MatchingLoss, targets_of_all, targets_of_labels
from rd3.methods._pool import Pool
from rd3.methods.edc import flatness
from rd3.planning.teacher_roles import teacher_role
from rd3.recipe import SetRecipe, StatisticsRecipe
from rd3.seeding import generator
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe, trial_recipes, trial_set

TOY = ToyDataset(side=16)
SMALL = {
    "pool": ("one", "two"), "init": "random", "patch": 4, "crop_scale_min": 0.5, "statistics_crop": "none",
    "matching_weight": 0.01,
}  # fmt: skip
"""What 32 pixels have, for the toy's 16."""


def _teachers():
    return [toy_teacher(TOY, number) for number in range(2)]


def _make(tmp_path, folder, ipc=2, *, teachers=None, **settings):
    """A set, the one that it starts from, and its recipes."""
    recipes = trial_recipes("edc", TOY, ipc, **{**SMALL, **settings})
    trial_set(recipes, TOY, teachers or _teachers(), tmp_path, tmp_path / folder)
    (first,) = [recipe for recipe in recipes[:-1] if isinstance(recipe, SetRecipe)]
    begun = SyntheticSet.open(tmp_path / "parents" / first.key)
    return SyntheticSet.open(tmp_path / folder), begun, recipes


def test_published_settings():
    def fields(dataset, ipc, *names):
        settings = resolve_settings("edc", dataset_info(dataset), ipc)
        return tuple(getattr(settings, name) for name in names)

    names = ("iterations", "batch_size", "matching_weight", "ema", "init", "crop_scale_min", "patch")
    assert fields("imagenet1k", 10, *names) == (1000, 80, 0.1, 0.8, "rded", 0.5, 16)
    assert fields("imagenette", 50, *names) == (50, 100, 0.01, 0.0, "rded", 0.5, 16)
    assert fields("tinyimagenet", 1, *names) == (2000, 100, 0.01, 0.8, "random", 0.5, 4)
    assert fields("cifar100", 10, *names) == (2000, 100, 0.01, 0.8, "random", 0.5, 4)
    assert fields("cifar10", 1, *names) == (75, 10, 0.01, 0.8, "random", 0.08, 4)
    assert fields("cifar10", 10, *names) == (75, 100, 0.01, 0.8, "random", 0.08, 4)
    assert [fields("cifar10", ipc, "iterations", "batch_size") for ipc in (50, 100)] == [(75, 500), (75, 1000)]
    same = ("lr", "category_weight", "flatness_weight", "image_ema", "drop_rate", "first_multiplier", "flip")
    assert fields("cifar10", 1, *same) == fields("imagenet1k", 10, *same) == (0.05, 0.5, 0.0, 0.99, 0.0, 10.0, True)


def test_what_is_not_published_for_cifar10_is_said():
    info = dataset_info("cifar10")
    assert [published("edc", info, ipc).nearest for ipc in (1, 10)] == [False, False]
    roles = {name: teacher_role(info, name) for name in resolve_settings("edc", info, 10).pool}
    assert [name for name, role in roles.items() if role.nearest] == [
        "gvbsm-convnet_d1",
        "gvbsm-convnet_d2",
        "gvbsm-convnet_w32",
    ]
    [training] = {role.training for role in roles.values()}
    assert training is not None


def test_pools_are_the_scripts():
    def pool(dataset):
        return [role.removeprefix("gvbsm-") for role in resolve_settings("edc", dataset_info(dataset), 10).pool]

    five = ["resnet18", "convnet_in", "mobilenet_v2", "wrn_16_2", "shufflenet_v2_x0_5"]
    assert pool("tinyimagenet") == five
    assert pool("cifar10") == pool("cifar100") == [*five, "convnet_d1", "convnet_d2", "convnet_w32"]
    assert pool("imagenet1k") == ["resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "alexnet"]
    assert pool("imagewoof") == ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tinyimagenet", "digits"])
def test_statistics_are_shared_with_gvbsm(dataset):
    info = dataset_info(dataset)
    collections = {
        METHODS.get(name)().needs(info, resolve_settings(name, info, 10), "resnet18").collection
        for name in ("gvbsm", "edc")
    }
    assert len(collections) == 1


def test_the_start_is_the_init_set_with_some_images_flipped(tmp_path):
    """Steps of one in 255 at most: what comes out is what it began with, flipped or not."""
    made, begun, _recipes = _make(tmp_path, "made", 6, lr=1e-6, iterations=1)
    flipped = 0
    for image, first in zip(made.images.int(), begun.images.int(), strict=True):
        same, mirrored = ((image - each).abs().max() <= 1 for each in (first, first.flip(2)))
        assert same != mirrored
        flipped += bool(mirrored)
    assert 3 < flipped < 15
    straight, _begun, _recipes = _make(tmp_path, "straight", 6, lr=1e-6, iterations=1, flip=False)
    assert (straight.images.int() - begun.images.int()).abs().max() <= 1


def _distances(images, labels, teacher, statistics):
    """Of all images' statistics, and of the classes'."""
    found = []
    for targets in (
        targets_of_all(teacher.network, statistics),
        targets_of_labels(teacher.network, statistics, labels),
    ):
        with (
            torch.no_grad(),
            MatchingLoss(teacher.network, [(1.0, targets)], patch=4, first_multiplier=10, ema=0.0) as loss,
        ):
            teacher(images)
            found.append(float(loss.value()))
    return found


def test_refining_lowers_the_losses(tmp_path):
    teachers = _teachers()
    made, begun, recipes = _make(
        tmp_path, "made", 4, teachers=teachers, iterations=60, matching_weight=1.0, crop_scale_min=1.0, flip=False
    )
    statistics = [
        load(tmp_path / "parents" / recipe.key, recipe) for recipe in recipes if isinstance(recipe, StatisticsRecipe)
    ]
    assert made.manifest.phases.keys() == {"recover"}
    for teacher, collected in zip(teachers, statistics, strict=True):
        before, after = (_distances(each.images / 255, each.labels, teacher, collected) for each in (begun, made))
        assert sum(after) < 0.9 * sum(before)
        with torch.no_grad():
            entropies = [F.cross_entropy(teacher(each.images / 255), each.labels) for each in (begun, made)]
        assert entropies[1] < entropies[0]


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_two_targets_share_the_weight(tmp_path, weight):
    teacher = toy_teacher(TOY)
    *_before, collection, first, recipe = trial_recipes("edc", TOY, 2, **(SMALL | {"pool": ("one",), "ema": 0.0}))
    assert isinstance(collection, StatisticsRecipe) and isinstance(first, SetRecipe)
    collect(collection, teacher, TOY, tmp_path)
    statistics = load(tmp_path, collection)
    settings = METHODS.get("edc").Settings.model_validate(recipe.settings)
    context = Context(recipe, settings, TOY.info, TOY, [teacher], torch.device("cpu"), [statistics])
    block = Block(0, ((0, 0), (2, 0), (2, 1)))
    pixels, labels = TOY.images("train", [0, 1, 2]).float() / 255, torch.tensor(block.labels)
    pool = Pool(block, context, category_weight=weight)
    _logits, matching = pool.forward(teacher.normalise(pixels), 0)
    of_all, of_labels = _distances(pixels, labels, teacher, statistics)
    assert abs(of_all - of_labels) > 0.5
    assert float(matching) == pytest.approx((1 - weight) * of_all + weight * of_labels, rel=1e-4)


def test_category_weight_moves_the_target(tmp_path):
    """One class in a batch: matching its own statistics brings the images nearer to these than matching all does."""
    settings = {
        "batch_size": 4,
        "iterations": 20,
        "lr": 0.1,
        "matching_weight": 1.0,
        "crop_scale_min": 1.0,
        "flip": False,
    }
    teachers, nearer = _teachers(), {}
    for weight in (0.0, 1.0):
        made, _begun, recipes = _make(tmp_path, f"made {weight}", 4, category_weight=weight, **settings)
        recipe = next(recipe for recipe in recipes if isinstance(recipe, StatisticsRecipe))
        collected = load(tmp_path / "parents" / recipe.key, recipe)
        nearer[weight] = sum(
            _distances(made.images[rows] / 255, made.labels[rows], teachers[0], collected)[1]
            for rows in ((made.labels == label).nonzero().flatten() for label in range(3))
        )
    assert nearer[1.0] < 0.95 * nearer[0.0]


def test_flatness_is_kl_with_the_mean_over_classes_too():
    stream = generator(0, "logits")
    logits, averaged = (3 * torch.randn((2, 5), generator=stream, dtype=torch.float64) for _each in range(2))
    total = 0.0
    for z, wanted in zip(logits.tolist(), averaged.tolist(), strict=True):
        p, q = ([math.exp(value / 4) for value in values] for values in (wanted, z))
        p, q = ([value / sum(values) for value in values] for values in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(flatness(logits, averaged)) == pytest.approx(total / 10)
    assert float(flatness(logits, logits)) == pytest.approx(0, abs=1e-12)


def test_the_averaged_images_start_as_the_images_and_lag_behind(tmp_path):
    """Views of the whole image; the teacher whose turn it is sees the images, then their average before this step."""
    teachers, seen = _teachers(), []
    for number, teacher in enumerate(teachers):
        teacher.register_forward_pre_hook(
            lambda _module, inputs, number=number: seen.append((number, inputs[0].detach().clone()))
        )
    settings = {"flatness_weight": 1.0, "iterations": 3, "image_ema": 0.25, "crop_scale_min": 1.0, "flip": False}
    _make(tmp_path, "made", 2, teachers=teachers, **settings)
    passes = [(number, pixels) for number, pixels in seen if len(pixels) == 6]
    assert [number for number, _pixels in passes] == [0, 0, 1, 1, 0, 0]
    (x0, a0), (x1, a1), (_x2, a2) = ((passes[at][1], passes[at + 1][1]) for at in (0, 2, 4))
    assert (x1 - x0).abs().max() > 1e-3
    torch.testing.assert_close(a0, x0)
    torch.testing.assert_close(a1, x0)
    torch.testing.assert_close(a2, 0.25 * x0 + 0.75 * x1)


def test_both_are_seen_under_one_draw(tmp_path):
    teachers, seen = _teachers()[:1], []
    teachers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    _make(tmp_path, "made", 2, teachers=teachers, pool=("one",), flatness_weight=1.0, iterations=9, lr=1e-5)
    passes = [pixels for pixels in seen if len(pixels) == 6]
    assert len(passes) == 18
    for images, averaged in zip(passes[::2], passes[1::2], strict=True):
        torch.testing.assert_close(images, averaged, atol=1e-3, rtol=0)
    assert (passes[0] - passes[2]).abs().max() > 0.05


def test_the_flatness_term_changes_the_images(tmp_path):
    with_it, without = (
        _make(tmp_path, str(weight), 2, flatness_weight=weight, iterations=10, lr=0.2)[0] for weight in (100.0, 0.0)
    )
    assert not torch.equal(with_it.images, without.images)


def test_flatness_is_work(tmp_path):
    recipes = [trial_recipe("edc", TOY, 2, **SMALL, flatness_weight=weight) for weight in (0.0, 1.0)]
    plain, flat = (METHODS.get("edc")().cost(recipe, TOY.info, lambda key: Cost(10.0)).flops for recipe in recipes)
    assert plain == 2 * 3 * 6 * 10 and flat == 3 * 3 * 6 * 10


def test_more_images_than_a_class_has_are_not_supported():
    method = METHODS.get("edc")()
    assert method.supports(TOY.info, 8).ok
    assert "toy has 8 training images a class, IPC is 9" in method.supports(TOY.info, 9).reason


def test_nan_diverges(tmp_path):
    teachers = _teachers()
    teachers[1].network[8].weight.fill_(float("nan"))
    message = r"EDC, block 0: the loss was nan at iteration 2 of 2 \(last finite loss [\d.]+ at iteration 1\)"
    with pytest.raises(Diverged, match=message):
        _make(tmp_path, "made", teachers=teachers, iterations=2)
