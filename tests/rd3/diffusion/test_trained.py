"""A backbone that was really trained: its images are digits of their class, new ones, and Minimax widens them.

``digits-dit`` beside this file is the artifact of ``rd3 diffusion train digits --role dit``.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from rd3.datasets import Dataset, Roots, open_dataset
from rd3.diffusion.backbone import BackboneManifest, open_backbone
from rd3.diffusion.derivations.minimax import MinimaxFineTuning, MinimaxTuning
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.recognition import Recognition, recognition
from rd3.diffusion.training import train
from rd3.methods.minimax import FILE
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.recipe import BackboneRecipe, Data, DerivedRecipe, recipe_of_kind

SHIPPED = Path(__file__).parent / "digits-dit"
PER_CLASS = 50


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Dataset:
    return open_dataset("digits", Roots(None, tmp_path_factory.mktemp("home")))


def pixels(digits: Dataset, split: str) -> torch.Tensor:
    return digits.images(split, range(len(digits.labels(split)))).float() / 255


class Judge:
    """A support vector machine on real digits, which shares nothing with the backbone; logits are its votes."""

    def __init__(self, digits: Dataset):
        self.machine = SVC().fit(features(pixels(digits, "train")), digits.labels("train"))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.machine.predict(features(images))), 10)


def features(images: torch.Tensor) -> np.ndarray:
    """(N, 64): grey means over 4 x 4 pixels, which is the resolution at which the digits were scanned."""
    return torch.nn.functional.avg_pool2d(images.mean(1), 4).flatten(1).numpy()


@pytest.fixture(scope="module")
def judge(digits: Dataset) -> Judge:
    judge = Judge(digits)
    right = judge(pixels(digits, "test")).argmax(1).numpy() == digits.labels("test")
    assert right.mean() >= 0.95
    return judge


def opened(digits: Dataset, folder: Path = SHIPPED) -> DiT:
    recipe = recipe_of_kind(BackboneManifest.read(folder).recipe, BackboneRecipe)
    backbone = open_backbone(folder, recipe, digits.info)
    assert isinstance(backbone, DiT)
    return backbone


@pytest.fixture(scope="module")
def generated(digits: Dataset, judge: Judge) -> Recognition:
    return recognition(opened(digits), judge, PER_CLASS)


def test_it_is_the_shipped_role_and_small(digits: Dataset):
    planned = backbone_recipe(backbone_role(digits.info, "dit"), digits.info, digits.fingerprint)
    assert BackboneManifest.read(SHIPPED).key == planned.key, "train it anew: its settings have changed"
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 5_000_000


def test_its_images_are_digits_of_their_class(generated: Recognition):
    assert len(generated.labels) == 500
    assert generated.pct >= 80


def test_without_classes_they_are_not(digits: Dataset, judge: Judge):
    blind = opened(digits)
    blind.rows = torch.full_like(blind.rows, blind.null)
    assert recognition(blind, judge, PER_CLASS // 5).pct < 30


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each to the nearest of the others."""
    return np.sqrt(((images[:, None] - others[None]) ** 2).sum(-1)).min(1)


def test_its_images_are_no_copies(digits: Dataset, generated: Recognition):
    """They are as far from the nearest training image as unseen real images are, at least two thirds of that."""
    real, unseen = (features(pixels(digits, split)) for split in ("train", "test"))
    own = nearest(features(generated.images.float() / 255), real)
    usual = np.median(nearest(unseen, real))
    assert np.median(own) > 2 / 3 * usual
    assert own.min() > 0.2 * usual


def pairwise(images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """(10,) mean distance between two images of a class."""
    found = []
    for label in range(10):
        own = features(images[labels == label].float() / 255)
        distances = np.sqrt(((own[:, None] - own[None]) ** 2).sum(-1))
        found.append(distances.sum() / (len(own) * (len(own) - 1)))
    return np.array(found)


def minimax(digits: Dataset, folder: Path, **settings: float) -> DiT:
    """The shipped model after Minimax's fine-tuning."""
    from safetensors.torch import load_file

    tuning = MinimaxTuning(epochs=2, batch_size=16, ema=0.98, **settings)
    recipe = DerivedRecipe(
        data=Data(name="digits", fingerprint=digits.fingerprint, split="train"), classes=digits.info.classes,
        resolution=32, step="minimax", version=1, settings=tuning.model_dump(),
        backbone=BackboneManifest.read(SHIPPED).key, seed=0,
    )  # fmt: skip
    folder.mkdir()
    MinimaxFineTuning().derive(recipe, tuning, opened(digits), digits, folder, lambda fraction, note: None)
    own = opened(digits)
    own.transformer.load_state_dict(load_file(folder / FILE), strict=False)
    return own


def interval(gain: np.ndarray) -> tuple[float, float]:
    """Mean over the ten classes, and half of its 95 % interval by Student's t."""
    return gain.mean(), 2.262 * gain.std(ddof=1) / math.sqrt(len(gain))


def test_minimax_widens_the_classes(digits: Dataset, judge: Judge, tmp_path):
    """Mean distance within a class: fine-tuned as published against the model as it was, and the diversity term alone.

    On digits the published weight of the term is too small to be seen beside the rest of the fine-tuning.
    """
    kinds = {
        "as it was": opened(digits),
        "published": minimax(digits, tmp_path / "published"),
        "without": minimax(digits, tmp_path / "without", representativeness=0.0, diversity=0.0),
        "diverse": minimax(digits, tmp_path / "diverse", representativeness=0.0, diversity=0.5),
    }
    made = {name: recognition(model, judge, 20) for name, model in kinds.items()}
    wide = {name: pairwise(one.images, one.labels) for name, one in made.items()}
    for more, less in (("published", "as it was"), ("diverse", "without")):
        mean, half = interval(wide[more] - wide[less])
        assert mean - half > 0, f"{more} against {less}: {mean:.3f} +- {half:.3f}"
        assert made[more].pct >= 80


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_trained_anew_it_makes_digits_as_well(digits: Dataset, judge: Judge, tmp_path):
    planned = backbone_recipe(backbone_role(digits.info, "dit"), digits.info, digits.fingerprint)
    train(planned, digits, tmp_path)
    assert recognition(opened(digits, tmp_path), judge, PER_CLASS).pct >= 80
