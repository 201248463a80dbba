"""Herding and k-center against plain loops, on random features and on the features of real digits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rd3.datasets import Roots, open_dataset
from rd3.errors import Unsupported
from rd3.methods import METHODS, Context
from rd3.methods._coreset import teacher_features
from rd3.methods.herding import herd, unit_rows
from rd3.methods.k_center import KCenter
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe, trial_teacher

SEEDS = range(5)


def features(seed: int, n: int = 30, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 1.0, (n, d))


def plain_herding(rows: list[list[float]], wanted: int) -> list[int]:
    """Algorithm 4 of iCaRL, number by number."""
    n, d = len(rows), len(rows[0])
    rows = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]
    mean = [sum(row[i] for row in rows) / n for i in range(d)]
    chosen: list[int] = []
    for k in range(1, wanted + 1):
        best, least = -1, math.inf
        for candidate in range(n):
            if candidate in chosen:
                continue
            own = [(rows[candidate][i] + sum(rows[j][i] for j in chosen)) / k for i in range(d)]
            distance = math.sqrt(sum((mean[i] - own[i]) ** 2 for i in range(d)))
            if distance < least:
                best, least = candidate, distance
        chosen.append(best)
    return chosen


def plain_k_center(rows: list[list[float]], wanted: int) -> list[int]:
    """Greedy k-center, every distance computed anew."""
    n, d = len(rows), len(rows[0])
    mean = [sum(row[i] for row in rows) / n for i in range(d)]
    chosen = [min(range(n), key=lambda i: math.dist(rows[i], mean))]
    while len(chosen) < wanted:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(math.dist(rows[i], rows[j]) for j in chosen)))
    return chosen


@pytest.mark.parametrize("seed", SEEDS)
def test_herding_equals_a_plain_loop(seed: int) -> None:
    rows = features(seed)
    assert herd(unit_rows(rows), 30) == plain_herding(rows.tolist(), 30)


@pytest.mark.parametrize("seed", SEEDS)
def test_herding_is_wellings_until_an_image_wins_twice(seed: int) -> None:
    """The dynamics of Welling 2009: x = argmax <w, phi(x)>, then w += mean - phi(x)."""
    rows = unit_rows(features(seed, n=200, d=12))
    mean = rows.mean(axis=0)
    weights, wins = mean.copy(), []
    while (winner := int((rows @ weights).argmax())) not in wins:
        wins.append(winner)
        weights += mean - rows[winner]
    assert len(wins) > 5
    assert herd(rows, len(wins)) == wins


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_herding_is_that_of_a_library(seed: int) -> None:
    """Kernel herding with a linear kernel; ``pip install coreax``, which brings JAX."""
    jax, coreax = pytest.importorskip("jax"), pytest.importorskip("coreax")
    kernels, solvers = pytest.importorskip("coreax.kernels"), pytest.importorskip("coreax.solvers")
    rows = unit_rows(features(seed, n=60))
    with jax.enable_x64(True):
        solver = solvers.KernelHerding(coreset_size=15, kernel=kernels.LinearKernel(), unique=True)
        found, _state = solver.reduce(coreax.Data(jax.numpy.asarray(rows)))
    assert np.asarray(found.unweighted_indices).tolist() == herd(rows, 15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_k_center_is_that_of_a_library(seed: int) -> None:
    """Its least distance of two selected rows, maximised greedily from the same first row; ``submodlib-py``."""
    submodlib = pytest.importorskip("submodlib")
    rows = features(seed, n=60)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    spread = submodlib.DisparityMinFunction(n=60, mode="dense", sijs=1 - distances / distances.max())
    chosen = KCenter().select(rows, 1)
    while len(chosen) < 15:
        rest = [i for i in range(60) if i not in chosen]
        chosen.append(max(rest, key=lambda i: spread.evaluate({*chosen, i})))
    assert KCenter().select(rows, 15) == chosen


@pytest.mark.parametrize("seed", SEEDS)
def test_k_center_equals_a_plain_loop(seed: int) -> None:
    rows = features(seed)
    assert KCenter().select(rows, 30) == plain_k_center(rows.tolist(), 30)


@pytest.mark.parametrize("seed", SEEDS)
def test_k_center_covers_within_twice_the_optimum(seed: int) -> None:
    rows = features(seed, n=12, d=2)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)

    def radius(centers: tuple[int, ...]) -> float:
        return float(distances[:, list(centers)].min(axis=1).max())

    for k in (2, 3, 4):
        best = min(radius(centers) for centers in itertools.combinations(range(12), k))
        assert radius(tuple(KCenter().select(rows, k))) <= 2 * best + 1e-12


def test_equal_images_are_selected_in_the_order_of_the_dataset() -> None:
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # all equally far from their mean
    assert herd(square, 1) == [0] and KCenter().select(square, 1) == [0]
    assert herd(square, 4) == [0, 2, 1, 3]
    assert KCenter().select(square, 4) == [0, 2, 1, 3]
    same = np.ones((5, 3))
    assert herd(same, 5) == KCenter().select(same, 5) == [0, 1, 2, 3, 4]


def test_features_of_zeros_keep_their_direction() -> None:
    rows = unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert rows.tolist() == [[0.0, 0.0], [0.6, 0.8]]


@pytest.fixture
def digits(tmp_path):
    return open_dataset("digits", Roots(None, tmp_path / "home"))


@pytest.mark.parametrize(("name", "plain"), [("herding", plain_herding), ("k_center", plain_k_center)])
def test_the_set_on_digits_is_that_of_a_plain_loop(name, plain, digits, tmp_path):
    """With features from a plain forward pass, up to the last linear layer, image by image."""
    teacher = trial_teacher(digits)
    recipe = trial_recipe(name, digits, 4)
    synthesize(recipe, digits, (teacher,), tmp_path / "set")
    made = SyntheticSet.open(tmp_path / "set")
    network, head = teacher.network, teacher.head
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0][0]))
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in digits.info.normalisation.model_dump().values())
    for label in (0, 7):
        positions = np.flatnonzero(digits.labels("train") == label)
        seen.clear()
        for position in positions.tolist():
            image = digits.images("train", [position])[0].float() / 255
            network(((image - mean) / std)[None])
        chosen = plain([row.double().tolist() for row in seen], 4)
        assert torch.equal(made.images[made.labels == label], digits.images("train", positions[chosen].tolist()))


def test_features_do_not_depend_on_how_images_are_batched(monkeypatch):
    toy = ToyDataset(per_class=9)
    recipe = trial_recipe("herding", toy, 2)
    ctx = Context(recipe, None, toy.info, toy, (toy_teacher(toy),), torch.device("cpu"))
    whole = teacher_features(np.arange(9), ctx)
    monkeypatch.setattr("rd3.methods._coreset.images_per_pass", lambda ctx: 4)
    np.testing.assert_allclose(teacher_features(np.arange(9), ctx), whole, rtol=1e-6)
    assert whole.shape == (9, 16) and whole.dtype == np.float64


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_smaller_sets_are_prefixes_and_the_seed_changes_nothing(name, tmp_path):
    toy = ToyDataset(classes=4, per_class=9)
    sets = {}
    for ipc in (1, 2, 5):
        synthesize(trial_recipe(name, toy, ipc), toy, (toy_teacher(toy),), tmp_path / str(ipc))
        sets[ipc] = SyntheticSet.open(tmp_path / str(ipc))
    assert all(torch.equal(sets[ipc].images, sets[5].prefix(ipc)[0]) for ipc in (1, 2))
    assert trial_recipe(name, toy, 2, set_seed=3) == trial_recipe(name, toy, 2)


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_a_split_that_has_too_few_images(name, tmp_path, monkeypatch):
    toy = ToyDataset(classes=4, per_class=9)
    assert METHODS.get(name)().supports(toy.info, 10).reason == "toy has 9 training images a class, IPC is 10"
    monkeypatch.setattr(toy, "_labels", toy._labels[:-1])
    with pytest.raises(Unsupported, match="Class toy3 has 8 images in split train, IPC is 9"):
        synthesize(trial_recipe(name, toy, 9), toy, (toy_teacher(toy),), tmp_path)
